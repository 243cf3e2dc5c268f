"""`llm-ops way`: from text to a model that serves, in one command that goes on wherever it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from course.terminal import options_of, parse
from llm_ops.way.settings import QUICK, Settings
from llm_ops.way.stage import Place
from llm_ops.way.stages import STAGES, stages_of
from llm_ops.way.walk import PAGE, require_stage, walk


def way(arguments: Sequence[str]) -> int:
    """Walk it; the exit code."""
    names = ", ".join(each.name for each in STAGES)
    parser = options_of("llm-ops way")
    parser.add_argument("folder", help="for all that is made; the same command goes on with it after a stop")
    parser.add_argument("--quick", action="store_true", help="few steps: what is learned is not claimed")
    parser.add_argument("--without", choices=["smollm2"], help="leave the real pretrained model out")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--stop_after", metavar="STAGE", help=f"one of {names}")
    parser.add_argument("--from", dest="again_from", metavar="STAGE", help="do this stage and all after it anew")
    options = parse(parser, arguments)
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed {options.seed} must be from 0 to {2**32 - 1}")
    settings = replace(QUICK if options.quick else Settings(), seed=options.seed, smollm2=options.without is None)
    stages = stages_of(settings)
    for name in (options.stop_after, options.again_from):
        require_stage(name, stages)
    place = Place(_folder(options.folder), settings)
    if place.root.exists() and not place.root.is_dir():
        raise ValueError(f"{options.folder} is a file; give a folder")
    place.root.mkdir(parents=True, exist_ok=True)
    walk(place, stages, options.stop_after, options.again_from)
    print(f"every claim: {place.root / PAGE}")
    return 0


def _folder(given: str) -> Path:
    """The folder that is meant.

    Raises:
        ValueError: for none, and for a home that there is not.
    """
    if not given.strip():
        raise ValueError("the folder has no name; give one")
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{given}: there is no such user; give the folder's whole path") from None
