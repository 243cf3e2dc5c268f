"""What was run, when, and how it ended: a JSON file in the output folder of `course run`."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.files import write_text

OUTPUT = "runs/course"
FILE = "state.json"


@dataclass
class Result:
    """The last finished run of one notebook.

    Attributes:
        run: the id of the `course run` it belongs to.
        ok: whether every cell ran (for exercises: whether every check held).
        code_sha256: of the code that ran.
        finished: local time, ISO 8601 to the second.
        seconds: from the kernel's start to its end.
        peak_memory_bytes: resident memory of the kernel and its children, sampled.
        held, claims: claims that held, and all claims made.
        damaged: lines among its claims that cannot be read.
        skipped: claims that this machine cannot show; neither held nor made.
        error: the lines that say what failed.
        solved, exercises: for a notebook of exercises.
    """

    run: str
    ok: bool
    code_sha256: str
    finished: str
    seconds: float
    peak_memory_bytes: int
    held: int
    claims: int
    error: list[str] = field(default_factory=list)
    solved: int = 0
    exercises: int = 0
    damaged: int = 0
    skipped: int = 0


@dataclass
class History:
    """The last call of `course run` (or several, where one was interrupted and continued), and every record.

    Attributes:
        run: its id, the time it started; empty before the first.
        complete: whether it went through all of `selection`, failures included.
        selection: the notebooks it was asked for.
        notebooks: the last record of each notebook.
    """

    run: str = ""
    complete: bool = True
    selection: list[str] = field(default_factory=list)
    notebooks: dict[str, Result] = field(default_factory=dict)

    def finished(self, path: str) -> Result | None:
        """The notebook's record, if it belongs to the last run."""
        record = self.notebooks.get(path)
        return record if record is not None and record.run == self.run else None

    def unfinished(self) -> list[str]:
        """Of the last run: notebooks that failed or were not reached."""
        return [path for path in self.selection if not ((record := self.finished(path)) and record.ok)]


def load(folder: Path) -> History:
    """The state in an output folder; an empty one where nothing was run.

    Raises:
        CourseError: when the file is damaged.
    """
    path = folder / FILE
    try:
        raw = json.loads(path.read_bytes())
        json.dumps(raw, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair could not be saved again
        values = _values(History, raw, "the file")
        values["notebooks"] = {
            name: Result(**_values(Result, record, name)) for name, record in values.get("notebooks", {}).items()
        }
        return History(**values)
    except (FileNotFoundError, NotADirectoryError):
        return History()
    except IsADirectoryError:
        raise CourseError(f"{path} is a folder; delete it and run again") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeError are ValueErrors
        raise CourseError(f"{path} is damaged ({error}); delete it and run again") from None


_TYPES: dict[str, type] = {"str": str, "bool": bool, "int": int, "float": float, "list[str]": list}


def _values(kind: type[History] | type[Result], raw: Any, place: str) -> dict[str, Any]:
    """The fields of a state or a record, each of its type.

    Raises:
        ValueError: naming the place and the field.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{place} holds no fields")
    known = {item.name: item for item in fields(kind)}
    for name in raw:
        if name not in known:
            raise ValueError(f"{place}: unknown field {name!r}")
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name in raw:
            values[name] = _typed(raw[name], str(item.type), f"{place}: {name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{place}: {name} is missing")
    return values


def _typed(value: Any, kind: str, place: str) -> Any:
    wanted = _TYPES.get(kind, dict)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else math.inf
    good = isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
    if good and isinstance(value, (int, float)):
        good = 0 <= value < 2**63  # NaN is not
    if good and isinstance(value, list):
        good = all(isinstance(item, str) for item in value)
    if not good:
        raise ValueError(f"{place} is not {kind}: {value!r:.40}")
    return value


def save(state: History, folder: Path) -> None:
    """Write the state in one step."""
    write_text(folder / FILE, json.dumps(asdict(state), indent=1, ensure_ascii=False) + "\n")
