"""Which notebooks the arguments of a command name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from course.errors import CourseError
from course.plan.curriculum import Curriculum


def to_run(curriculum: Curriculum, arguments: list[str], cwd: Path) -> list[str]:
    """Notebooks to run, relative to the root, in the order of the plan.

    A notebook names itself; a folder of lessons or a module names its lessons; `exercises/` and `solutions/`
    name what they hold. No argument at all names every lesson.

    Raises:
        CourseError: for an argument that names nothing.
    """
    if not arguments:
        chosen = curriculum.notebooks()
        if not chosen:
            raise CourseError("no lesson of docs/curriculum.toml has a notebook yet")
        return chosen
    order = every_notebook(curriculum)
    names: set[str] = set()
    for argument in arguments:
        relative = inside(curriculum, argument, cwd)
        path = curriculum.root / relative
        if path.is_file():
            if path.suffix != ".ipynb":
                raise CourseError(f"{argument}: not a notebook (its name does not end in .ipynb)")
            found = [relative]
        else:
            lessons = [name for name in curriculum.notebooks() if _under(name, relative)]
            found = lessons or [name for name in order if _under(name, relative)]
        if not found:
            raise CourseError(f"{argument}: no notebook of the course lies there")
        names.update(found)
    known = [name for name in order if name in names]
    return known + sorted(names.difference(known))


def to_build(curriculum: Curriculum, arguments: list[str], cwd: Path) -> list[str]:
    """Lessons and solutions to build, relative to the root, in the plan's order; all without an argument.

    Raises:
        CourseError: for an argument that names none of them.
    """
    known = [name for name in every_notebook(curriculum) if "/exercises/" not in name]
    if not arguments:
        return known
    names: set[str] = set()
    for argument in arguments:
        relative = inside(curriculum, argument, cwd)
        if "/exercises/" in relative:
            source = relative.replace("/exercises/", "/solutions/")
            raise CourseError(f"{argument}: exercises are made from solutions; build {source!r}")
        found = [name for name in known if name == relative or _under(name, relative)]
        if not found:
            raise CourseError(f"{argument}: neither a lesson of docs/curriculum.toml nor a solution of one")
        names.update(found)
    return [name for name in known if name in names]


def start_from(chosen: list[str], text: str, root: Path, cwd: Path) -> list[str]:
    """The notebooks from the one that `text` names: its path, or a part of the path that no other has.

    Raises:
        CourseError: when it names none or several.
    """
    paths = [path for path in chosen if (cwd / text).resolve() == root / path or path == text]
    matches = paths or [path for path in chosen if text.lower() in path.lower()]
    if not matches:
        raise CourseError(f"--from {text!r} names none of the {len(chosen)} notebooks to run{near(text, chosen)}")
    if len(matches) > 1:
        raise CourseError(
            f"--from {text!r} names {len(matches)} notebooks: {', '.join(matches[:3])}{', ...' * (len(matches) > 3)}"
        )
    return chosen[chosen.index(matches[0]) :]


def every_notebook(curriculum: Curriculum) -> list[str]:
    """Lessons, each followed by its exercises and solutions, that exist; relative to the root."""
    paths = []
    for lesson in curriculum.lessons:
        if curriculum.done(lesson):
            paths.append(lesson.path)
        for solution in lesson.solutions(curriculum.root):
            exercise = solution.replace("/solutions/", "/exercises/")
            paths += [exercise] * (curriculum.root / exercise).is_file() + [solution]
    return paths


def inside(curriculum: Curriculum, argument: str, cwd: Path) -> str:
    """An existing file or folder, relative to the root; `argument` is seen from `cwd` or from the root.

    Raises:
        CourseError: when it does not exist (with near names), or lies outside the course.
    """
    for base in (cwd, curriculum.root):
        path = (base / argument).resolve()
        if path.exists():
            break
    else:
        folders = [module.folder for module in curriculum.modules]
        raise CourseError(f"{argument}: no such file or folder{near(argument, folders + every_notebook(curriculum))}")
    try:
        return path.relative_to(curriculum.root).as_posix()
    except ValueError:
        raise CourseError(f"{argument}: outside the course, which lies at {curriculum.root}") from None


def near(text: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" with the known paths whose name is closest to `text`, or nothing."""
    by_name: dict[str, str] = {}
    for path in known:
        for name in (path, path.rsplit("/", 1)[-1], path.rsplit("/", 1)[-1].removesuffix(".ipynb")):
            by_name.setdefault(name.lower(), path)
    names = difflib.get_close_matches(text.lower(), by_name, n=4, cutoff=0.5)
    if not names:
        names = difflib.get_close_matches(text.lower().rsplit("/", 1)[-1], by_name, n=4, cutoff=0.5)
    paths = list(dict.fromkeys(by_name[name] for name in names))[:2]
    return f"; did you mean {' or '.join(repr(path) for path in paths)}?" if paths else ""


def _under(path: str, folder: str) -> bool:
    return folder == "." or path.startswith(f"{folder}/")
