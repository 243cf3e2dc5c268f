"""The folder `course run` writes to: refused where a file of the reader's would go, and locked while it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from course.errors import CourseError
from course.files import Busy, locked
from course.plan.curriculum import Curriculum
from course.run.history import FILE, OUTPUT

LOCK = "course-run.lock"
KINDS = ("notebooks", "exercises", "solutions")
REPORT = ("index.html", "claims.jsonl")


@contextmanager
def claimed(curriculum: Curriculum, notebooks: list[str], output: Path) -> Iterator[None]:
    """Hold the output folder for one run. The system releases it when the process ends, however that happens.

    Args:
        curriculum: the plan, whose notebooks must stay as they are.
        notebooks: what is to be run, relative to the root.
        output: the folder, resolved; made where it is missing.

    Raises:
        CourseError: when a file of the reader's could be lost there, the folder cannot be written, or another run
            holds it. Nothing is written or removed before.
    """
    _refuse_sources(curriculum, notebooks, output)
    _refuse_strangers(notebooks, output)
    with ExitStack() as held:
        try:
            held.enter_context(locked(output / LOCK, wait=False))
        except Busy:
            raise CourseError(
                f"{output}: another `course run` writes there; wait for it, or name another folder with --output"
            ) from None
        except (OSError, NotImplementedError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise CourseError(
                f"{output}: cannot write there ({said}); name a folder that you may write with --output"
            ) from None
        yield


def files(notebook: str, output: Path) -> list[Path]:
    """What a run of one notebook writes: its executed copy, page and claims, and the claims while it runs."""
    copy = output / notebook
    return [copy, *(copy.with_suffix(suffix) for suffix in (".html", ".claims.jsonl", ".claims.part"))]


def _refuse_sources(curriculum: Curriculum, notebooks: list[str], output: Path) -> None:
    advice = f"name another folder with --output, such as {OUTPUT}"
    modules = [curriculum.root / module.folder for module in curriculum.modules]
    folders = [folder / kind for folder in modules for kind in KINDS]
    for folder in [curriculum.root, *modules, *folders]:
        if folder.resolve().is_relative_to(output):
            raise CourseError(
                f"{output}: the course's notebooks lie in it, and the report would mix with them; {advice}"
            )
    for folder in folders:
        if output.is_relative_to(folder.resolve()):
            raise CourseError(f"{output}: lies in {folder.resolve()}, which holds the course's notebooks; {advice}")
    sources = {_identity(path): path for path in [*_sources(folders), *(curriculum.root / name for name in notebooks)]}
    for name in notebooks:
        if not (output / name).parent.resolve().is_relative_to(output):
            raise CourseError(f"{output}: the folder of {name} leads out of it by a link or '..'; {advice}")
        for path in files(name, output):
            identity = _identity(path)
            if identity is not None and identity in sources:
                raise CourseError(f"{path}: the same file as {sources[identity]}, which must stay; {advice}")


def _refuse_strangers(notebooks: list[str], output: Path) -> None:
    """Refuse a folder that no run has written to, where files of the reader's bear the names of the report's."""
    if any(os.path.lexists(output / name) for name in (FILE, LOCK)):
        return
    for path in [*(output / name for name in REPORT), *(path for name in notebooks for path in files(name, output))]:
        if os.path.lexists(path):
            raise CourseError(
                f"{path}: not written by `course run`; move it away, or name another folder with --output"
            )


def _sources(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        if folder.is_dir():
            yield from folder.rglob("*")


def _identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file share; None where there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
