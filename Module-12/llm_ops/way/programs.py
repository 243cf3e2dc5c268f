"""The course's commands, run in this process: a way that is killed leaves none of them behind."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

from course.terminal import INTERRUPTED, TERMINATED

PROGRAMS = {"babygpt": "llm_core.cli", "align": "llm_align.cli", "local-lora": "llm_peft.cli"}


def run(root: Path, program: str, *words: object, **options: object) -> str:
    """Run a command of the course.

    Args:
        root: of the way.
        program: one of `PROGRAMS`.
        words: what follows it.
        options: the rest, `run__folder=...` for `--run.folder ...`.

    Returns:
        What one would type in `root`.

    Raises:
        RuntimeError: when it failed; its own line on standard error says why.
        KeyboardInterrupt, SystemExit: when it was stopped.
    """
    given = [str(each) for each in words]
    for name, value in options.items():
        given += [f"--{name.replace('__', '.')}", str(value)]
    code = importlib.import_module(PROGRAMS[program]).main(given)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code == TERMINATED:
        raise SystemExit(TERMINATED)
    if code:
        raise RuntimeError(f"`{program} {given[0]}` ended with {code}; its own line says why")
    return shlex.join([program, *(each.replace(f"{root}/", "") for each in given)])
