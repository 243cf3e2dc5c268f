"""Where the course lies on disk, and its plan: the phases, modules and lessons of `docs/curriculum.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from course.errors import CourseError

PLAN = "docs/curriculum.toml"
WEEKS = range(1, 21)

_KEYS: dict[str, dict[str, type]] = {
    "phase": {"number": int, "name": str, "weeks": list},
    "module": {
        "folder": str, "title": str, "package": str, "goal": str, "concepts": list, "prerequisites": list,
        "project": str, "lesson": list,
    },
    "lesson": {
        "name": str, "week": int, "question": str, "needs": list, "leaves": str, "hardware": str,
        "papers": list, "pieces": list,
    },
    "record": {"name": str, "measures": str, "function": str, "seconds": int, "options": list},
}  # fmt: skip
_OPTIONAL = {"pieces", "options"}
MOST_SECONDS = 60  # of a section of records: a run with a time limit loses no more than that


@dataclass(frozen=True)
class Lesson:
    """One notebook: what it asks, needs and leaves. `folder` and `number` come from its place in the plan.

    `pieces` are the definitions of the helper packages that the lesson is about, as "module.qualname": each stands in
    it as code.
    """

    name: str
    week: int
    question: str
    needs: tuple[str, ...]
    leaves: str
    hardware: str
    papers: tuple[str, ...]
    pieces: tuple[str, ...]
    folder: str
    number: str  # "1", "1b", "2": a lesson that was split keeps the numbers after it

    @property
    def title(self) -> str:
        """The name without its number and underscore: "The Annotated Transformer"."""
        return re.sub(r"^\d+[a-z]?_", "", self.name)

    @property
    def path(self) -> str:
        """The notebook, relative to the course's root."""
        return f"{self.folder}/notebooks/{self.name}.ipynb"

    def solutions(self, root: Path) -> list[str]:
        """The notebooks in `solutions/` that carry this lesson's number, relative to the root."""
        return [
            path.relative_to(root).as_posix()
            for path in sorted((root / self.folder / "solutions").glob(f"{self.number}_*.ipynb"))
        ]


@dataclass(frozen=True)
class Module:
    """A folder of lessons with one goal and one project."""

    folder: str
    title: str
    package: str
    goal: str
    concepts: tuple[str, ...]
    prerequisites: tuple[str, ...]
    project: str
    lessons: tuple[Lesson, ...]


@dataclass(frozen=True)
class Phase:
    """A stretch of weeks."""

    number: int
    name: str
    weeks: tuple[int, ...]


@dataclass(frozen=True)
class RecordSection:
    """Values that `course record` measures in one go, into `docs/results/NAME.json`.

    Attributes:
        function: "module:name" of what measures them: a `course.record.Setting` in, rows out one after the other.
        seconds: after which it is ended.
        options: names of `--option name=value` without which it measures nothing.
    """

    name: str
    measures: str
    function: str
    seconds: int
    options: tuple[str, ...]


@dataclass(frozen=True)
class Curriculum:
    """The whole plan, in order; `records` in order of worth. A lesson is done when its notebook exists under `root`."""

    root: Path
    phases: tuple[Phase, ...]
    modules: tuple[Module, ...]
    records: tuple[RecordSection, ...] = ()

    @property
    def lessons(self) -> list[Lesson]:
        """Every lesson, planned ones too."""
        return [lesson for module in self.modules for lesson in module.lessons]

    def done(self, lesson: Lesson) -> bool:
        """Whether the lesson's notebook exists."""
        return (self.root / lesson.path).is_file()

    def module_of(self, lesson: Lesson) -> Module:
        """The module that holds the lesson."""
        return next(module for module in self.modules if lesson in module.lessons)

    def phase_of(self, lesson: Lesson) -> Phase:
        """The phase that holds the lesson's week."""
        return next(phase for phase in self.phases if lesson.week in phase.weeks)

    def notebooks(self) -> list[str]:
        """The notebooks of the lessons that exist, in order, relative to the root."""
        return [lesson.path for lesson in self.lessons if self.done(lesson)]

    def lesson_at(self, path: str) -> Lesson | None:
        """The lesson whose notebook this is."""
        return next((lesson for lesson in self.lessons if lesson.path == path), None)


def find_root(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` that holds the plan, else the clone that this package runs from.

    Raises:
        CourseError: when there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parents[2]):
        if (folder / PLAN).is_file():
            return folder
    raise CourseError(f"no course here: {start} lies in no folder with {PLAN}; cd into the clone and try again")


def load(root: Path) -> Curriculum:
    """Read and check the plan.

    Raises:
        CourseError: with the place, the value and the fix, for anything wrong in it.
    """
    path = root / PLAN
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CourseError(f"{PLAN} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CourseError(f"{PLAN} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except RecursionError:
        raise CourseError(f"{PLAN} is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise CourseError(f"{PLAN} is not TOML: {error}") from None
    _known(raw, {"phase", "module", "record"}, "the file")
    phases = tuple(_phase(entry, place) for entry, place in _tables(raw, "phase", "the file"))
    modules = tuple(_module(entry, place) for entry, place in _tables(raw, "module", "the file"))
    records = tuple(_record(entry, place) for entry, place in _tables(raw, "record", "the file"))
    curriculum = Curriculum(root, phases, modules, records)
    for lesson in curriculum.lessons:
        if not any(lesson.week in phase.weeks for phase in phases):
            raise CourseError(f"{PLAN}: lesson {lesson.name!r} is in week {lesson.week}, which no phase holds")
    folders = [module.folder for module in modules]
    if len(set(folders)) < len(folders):
        raise CourseError(f"{PLAN}: two modules share a folder: {', '.join(folders)}")
    names = [record.name for record in records]
    if len(set(names)) < len(names):
        raise CourseError(f"{PLAN}: two records share a name: {', '.join(names)}")
    return curriculum


def link(path: str, start: str) -> str:
    """A Markdown link target: `path` as seen from the file `start`, both relative to the root."""
    target, origin = path.split("/"), start.split("/")[:-1]
    while target[:-1] and origin and target[0] == origin[0]:
        target, origin = target[1:], origin[1:]
    return quote("/".join([".."] * len(origin) + target))


# ---- reading the file --------------------------------------------------------------------------------------


def _tables(raw: Mapping[str, Any], kind: str, place: str) -> Iterator[tuple[dict[str, Any], str]]:
    entries = raw.get(kind, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CourseError(f"{PLAN}: {place}: {kind!r} must be written as [[{kind}]] tables")
    for number, entry in enumerate(entries, start=1):
        label = entry.get("name") or entry.get("title") or f"number {number}"
        yield entry, f"{kind} {label!r}"


def _known(entry: Mapping[str, Any], keys: set[str], place: str) -> None:
    for key in entry:
        if key not in keys:
            raise CourseError(f"{PLAN}: {place}: unknown key {key!r}; the keys are {', '.join(sorted(keys))}")


def _fields(kind: str, entry: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The entry's values with lists as tuples, after a check of names and types."""
    types = _KEYS[kind]
    _known(entry, set(types), place)
    values: dict[str, Any] = {}
    for key, kind_of_value in types.items():
        if key in _OPTIONAL and key not in entry:
            values[key] = ()
            continue
        if key not in entry:
            raise CourseError(f"{PLAN}: {place}: {key!r} is missing")
        value = entry[key]
        if not isinstance(value, kind_of_value) or isinstance(value, bool):
            wanted = {"str": "a text", "int": "a whole number", "list": "a list"}[kind_of_value.__name__]
            raise CourseError(f"{PLAN}: {place}: {key!r} must be {wanted}, not {value!r}")
        if isinstance(value, list) and key not in ("weeks", "lesson") and not all(isinstance(x, str) for x in value):
            raise CourseError(f"{PLAN}: {place}: {key!r} must be a list of texts, not {value!r}")
        if key in ("folder", "name") and kind in ("module", "lesson", "record") and not _stays(str(value)):
            raise CourseError(f"{PLAN}: {place}: {key!r} must be the name of a file below the course, not {value!r}")
        values[key] = tuple(value) if isinstance(value, list) else value
    return values


def _stays(name: str) -> bool:
    """Whether a name from the plan leads to no other place when it becomes part of a path."""
    return bool(name) and not set("/\\\0") & set(name) and name not in (".", "..")


def _week(value: Any, place: str) -> None:
    if not isinstance(value, int) or value not in WEEKS:
        raise CourseError(f"{PLAN}: {place}: week {value!r} is outside {WEEKS.start} to {WEEKS.stop - 1}")


def _phase(entry: Mapping[str, Any], place: str) -> Phase:
    phase = Phase(**_fields("phase", entry, place))
    for week in phase.weeks:
        _week(week, place)
    return phase


def _record(entry: Mapping[str, Any], place: str) -> RecordSection:
    record = RecordSection(**_fields("record", entry, place))
    if not re.fullmatch(r"[\w.]+:\w+", record.function):
        raise CourseError(f"{PLAN}: {place}: 'function' must be written as module:name, not {record.function!r}")
    if not 0 < record.seconds <= MOST_SECONDS:
        raise CourseError(f"{PLAN}: {place}: 'seconds' must be 1 to {MOST_SECONDS}, not {record.seconds}")
    return record


def _module(entry: Mapping[str, Any], place: str) -> Module:
    raw_lessons = list(_tables(entry, "lesson", place))
    values = _fields("module", {"lesson": [], **entry}, place)
    lessons: list[Lesson] = []
    allowed = ["1"]
    for raw, lesson_place in raw_lessons:
        fields = _fields("lesson", raw, f"{place}, {lesson_place}")
        _week(fields["week"], f"{place}, {lesson_place}")
        number = fields["name"].partition("_")[0]
        if number not in allowed:
            begin = " or ".join(f"'{each}_'" for each in allowed)
            raise CourseError(f"{PLAN}: {place}, {lesson_place}: at its place its name must start with {begin}")
        lessons.append(Lesson(**fields, folder=values["folder"], number=number))
        count, letter = re.fullmatch(r"(\d+)([a-z]?)", number).groups()  # type: ignore[union-attr]
        allowed = [str(int(count) + 1), f"{count}{chr(ord(letter or 'a') + 1)}"]
    del values["lesson"]
    return Module(**values, lessons=tuple(lessons))
