"""The way, walked: stages in their order, those that are sealed left alone, the page written after each."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from course import claims
from course.files import Busy, locked, write_text
from course.hardware import hardware
from llm_ops.way.stage import (
    CLAIMS,
    Made,
    Place,
    Seal,
    Stage,
    begin,
    checksums,
    claims_sum,
    clear,
    read_seal,
    write_seal,
)  # fmt: skip

SETTINGS, PAGE = "settings.json", "index.html"


class ClaimFailed(ValueError):
    """A stage's claim did not hold: nothing that is built on it is begun."""


def walk(
    place: Place, stages: Sequence[Stage], stop_after: str | None = None, again_from: str | None = None,
    tell: Callable[[str], Any] = print,
) -> list[Seal]:  # fmt: skip
    """Do the stages that are not done, in their order.

    A process that ends anywhere, also by SIGKILL, loses at most what its stage had not written: the same call goes on.

    Args:
        place: the folder, which is made, and the settings.
        stages: each after those that it needs.
        stop_after: the last stage to do.
        again_from: a stage that is done anew, with all that come after it.
        tell: gets a line for each stage.

    Returns:
        The seals of the stages up to the last one.

    Raises:
        ValueError: for a stage that there is not, a folder that is in use, or one that holds a way with other settings,
            or something else.
        ClaimFailed: when a claim of a stage does not hold.
    """
    names = [each.name for each in stages]
    for name in (stop_after, again_from):
        require_stage(name, stages)
    last = names.index(stop_after) if stop_after else len(names) - 1
    if again_from and names.index(again_from) > last:
        raise ValueError(f"stage {again_from} comes after {stop_after}, where this walk stops; name an earlier one")
    with _alone_in(place.root):
        _settle(place)
        if again_from:
            for name in names[names.index(again_from) :]:
                clear(place.root / name)
        seals: dict[str, Seal] = {}
        try:
            for number, stage in enumerate(stages[: last + 1]):
                inputs = {name: seals[name].digest for name in stage.needs} | stage.outside(place)
                folder = place.root / stage.name
                seal = read_seal(folder, asdict(place.settings), inputs)
                if seal and seal.claims != claims_sum(folder):
                    seal = None  # nobody can say any more what it claimed
                verb = "kept" if seal else "done"
                seals[stage.name] = seal = seal or _do(place, stage, inputs)
                count = len(claims.read(folder / CLAIMS).records)
                tell(f"{number + 1} {stage.name:<9} {verb} {seal.seconds:7.1f} s {count:4d} claims  {stage.purpose}")
        finally:
            from llm_ops.way.page import page

            write_text(place.root / PAGE, page(place, stages, seals))
    return list(seals.values())


def require_stage(name: str | None, stages: Sequence[Stage]) -> None:
    """Raise for a name that no stage has; None will do.

    Raises:
        ValueError: with the names that there are.
    """
    names = [each.name for each in stages]
    if name is not None and name not in names:
        raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(names)}")


def _do(place: Place, stage: Stage, inputs: dict[str, str]) -> Seal:
    folder = place.root / stage.name
    begin(folder, inputs)
    start = time.perf_counter()
    with _claims_in(folder / CLAIMS, stage.name):
        try:
            made: Made = stage.run(place)
        except AssertionError as error:
            line = str(error).splitlines()[0] if str(error) else "a claim failed"
            raise ClaimFailed(f"stage {stage.name}: {line}") from error
    try:
        json.dumps([made.facts, made.measured], allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"stage {stage.name} found what no seal can hold ({error}); give plain numbers") from error
    seal = Seal(
        stage.name, asdict(place.settings), inputs, checksums(folder, made.files), made.facts, list(made.commands),
        time.perf_counter() - start, hardware(), made.measured, claims_sum(folder),
    )  # fmt: skip
    write_seal(folder, seal)
    return seal


@contextmanager
def _claims_in(path: Path, stage: str) -> Iterator[None]:
    """`course.check` writes its records there."""
    names = {"COURSE_CLAIMS": str(path), "COURSE_NOTEBOOK": stage}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    try:
        with locked(folder / "lock", wait=False):
            yield
    except Busy:
        raise ValueError(f"{folder} is in use by another process; wait for its end, or give another folder") from None


def _settle(place: Place) -> None:
    """Keep the settings of a way that begins, and refuse others for one that goes on."""
    path, wanted = place.root / SETTINGS, asdict(place.settings)
    if not path.exists():
        strangers = sorted(each.name for each in place.root.iterdir() if each.name != "lock")
        if strangers:
            raise ValueError(f"{place.root} holds {strangers[0]} and no way; give a folder that is new or empty")
        write_text(path, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        there: Any = json.loads(path.read_text("utf-8"))
        differing = [name for name in wanted if there.get(name) != wanted[name]]
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is damaged; delete {place.root}, or give another folder") from None
    if differing or there.keys() != wanted.keys():
        name = differing[0] if differing else min(there.keys() ^ wanted.keys())
        wrong = f"{place.root} was begun with {name}={there.get(name)}, and not {wanted.get(name)}"
        raise ValueError(f"{wrong}; give the same options, or another folder")
