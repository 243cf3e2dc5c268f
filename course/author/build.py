"""Build notebooks: execute them and write them back normalised, or say what is stale without executing."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from course import claims
from course.author import card, exercises
from course.engine.execute import Failure, environment, execute
from course.errors import CourseError, NotebookError
from course.notebook.format import Notebook, code_sha256, read, runnable, write
from course.notebook.normalise import normalise
from course.notebook.outputs import problems
from course.plan import timings
from course.plan.curriculum import Curriculum


@dataclass(frozen=True)
class Stale:
    """One thing that does not meet its source. `execute` says whether mending it takes a run."""

    path: str
    reason: str
    execute: bool

    def __str__(self) -> str:
        return f"STALE  {self.path}: {self.reason}"


class BuildError(CourseError):
    """A notebook that cannot be written back; the message has the lines to print."""


def stale(curriculum: Curriculum, path: str) -> list[Stale]:
    """What is stale about one lesson or solution, without executing it."""
    try:
        return _stale(curriculum, path)
    except NotebookError as error:
        return [Stale(path, str(error).removeprefix(f"{path}: "), True)]


def _stale(curriculum: Curriculum, path: str) -> list[Stale]:
    root = curriculum.root
    notebook = read(root / path, path)
    found = [Stale(path, reason, True) for reason in _needs_run(notebook)]
    lesson = curriculum.lesson_at(path)
    if lesson is not None and card.get(notebook) != card.text(curriculum, lesson, timings.load(root)):
        found.append(Stale(path, "its card is not what docs/curriculum.toml and the records say", False))
    if not found and normalise(notebook, root) != notebook:
        found.append(Stale(path, "saved by an editor since it was built (ids or metadata)", False))
    if "/solutions/" in path:
        target = exercises.exercises_path(path)
        wanted = exercises.generate(notebook, path, root)
        if not (root / target).is_file():
            found.append(Stale(target, f"missing; it is made from {path}", False))
        elif not _same(root / target, wanted):
            found.append(Stale(target, f"not what {path} generates", False))
    return found


def _same(path: Path, wanted: Notebook) -> bool:
    try:
        return bool(read(path) == wanted)
    except NotebookError:  # damaged: made anew from its solution
        return False


def _needs_run(notebook: Notebook) -> list[str]:
    ours = notebook.metadata.get("course")
    built = ours.get("code_sha256") if isinstance(ours, dict) else None
    if built is None:
        return ["never built"]
    if built != code_sha256(notebook):
        return ["its code changed since its outputs were made"]
    counts = [cell.execution_count for _, cell in runnable(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        return ["its cells were not run in order, once each"]
    return problems(notebook)


def build(curriculum: Curriculum, path: str, *, timeout: float = 600, out: TextIO | None = None) -> None:
    """Execute one lesson or solution and write it back, with its exercises.

    Raises:
        BuildError: when a cell fails or writes to stderr; the file is then as it was.
    """
    root, out = curriculum.root, out or sys.stdout
    notebook = read(root / path, path)
    _put_card(curriculum, path, notebook)
    if "/solutions/" in path:
        exercises.generate(notebook, path, root)  # a wrong marker is cheaper to learn about before the run
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "claims.jsonl"
        env = environment(path, file)
        outcome = asyncio.run(execute(notebook, (root / path).parent, env, timeout=timeout))
        count = len(claims.read(file).records)
    if outcome.failures:
        raise BuildError("\n".join(_report(outcome.failures[0], path)))
    notebook.metadata["course"] = {"code_sha256": code_sha256(notebook)}
    notebook = normalise(notebook, root)
    found = problems(notebook)
    if found:
        raise BuildError(f"NOT BUILT  {path}: {found[0]}")
    changed = write(notebook, root / path)
    word = "built" if changed else "unchanged"
    print(f"{word}  {path}  {outcome.seconds:.1f} s  {count} claims", file=out)
    _write_exercises(curriculum, path, notebook, out)


def tidy(curriculum: Curriculum, path: str, out: TextIO | None = None) -> None:
    """Mend what needs no run: the card, ids and metadata, the exercises made from a solution."""
    root, out = curriculum.root, out or sys.stdout
    notebook = read(root / path, path)
    _put_card(curriculum, path, notebook)
    notebook = normalise(notebook, root)
    if write(notebook, root / path):
        print(f"mended  {path}", file=out)
    _write_exercises(curriculum, path, notebook, out)


def _put_card(curriculum: Curriculum, path: str, notebook: Notebook) -> None:
    lesson = curriculum.lesson_at(path)
    if lesson is not None:
        card.put(notebook, card.text(curriculum, lesson, timings.load(curriculum.root)), path)


def _write_exercises(curriculum: Curriculum, path: str, notebook: Notebook, out: TextIO) -> None:
    if "/solutions/" in path:
        target = exercises.exercises_path(path)
        if write(exercises.generate(notebook, path, curriculum.root), curriculum.root / target):
            print(f"made  {target}", file=out)


def _report(failure: Failure, path: str) -> list[str]:
    lines = failure.lines(path)
    return [lines[0].replace("FAILED", "NOT BUILT", 1), *lines[1:]]


def check(curriculum: Curriculum, chosen: list[str], *, documents: bool) -> int:
    """Print what is stale, documents included where asked; returns the exit status."""
    from course.author import documents as tables

    found: list[object] = [item for path in chosen for item in stale(curriculum, path)]
    if documents:
        found += [Stale(name, reason, False) for name, reason in tables.stale(curriculum)]
    for item in found:
        print(item)
    if not found:
        print(f"nothing is stale ({len(chosen)} notebooks)")
    return 1 if found else 0


def build_all(curriculum: Curriculum, chosen: list[str], *, execute: bool, timeout: float) -> int:
    """Build each notebook, or with `execute` off what is stale; returns the exit status."""
    status = 0
    for path in chosen:
        try:
            found = stale(curriculum, path)
            if execute or any(item.execute for item in found):
                build(curriculum, path, timeout=timeout)
            elif found:
                tidy(curriculum, path)
        except CourseError as error:
            print(error, file=sys.stderr)
            status = 1
    return status
