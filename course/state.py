"""What was run, when, and how it ended: a JSON file in the output folder of `course run`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from course.curriculum import CourseError
from course.notebooks import write_text

OUTPUT = "runs/course"
FILE = "state.json"


@dataclass
class Record:
    """The last finished run of one notebook.

    Attributes:
        run: the id of the `course run` it belongs to.
        ok: whether every cell ran (for exercises: whether every check held).
        code_sha256: of the code that ran.
        finished: local time, ISO 8601 to the second.
        seconds: from the kernel's start to its end.
        peak_memory_bytes: resident memory of the kernel and its children, sampled.
        held, claims: claims that held, and all claims made.
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


@dataclass
class State:
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
    notebooks: dict[str, Record] = field(default_factory=dict)

    def finished(self, path: str) -> Record | None:
        """The notebook's record, if it belongs to the last run."""
        record = self.notebooks.get(path)
        return record if record is not None and record.run == self.run else None

    def unfinished(self) -> list[str]:
        """Of the last run: notebooks that failed or were not reached."""
        return [path for path in self.selection if not ((record := self.finished(path)) and record.ok)]


def load(folder: Path) -> State:
    """The state in an output folder; an empty one where nothing was run.

    Raises:
        CourseError: when the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return State()
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        raw["notebooks"] = {name: Record(**record) for name, record in raw["notebooks"].items()}
        return State(**raw)
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise CourseError(f"{path} is damaged ({error}); delete it and run again") from None


def save(state: State, folder: Path) -> None:
    """Write the state in one step."""
    write_text(folder / FILE, json.dumps(asdict(state), indent=1, ensure_ascii=False) + "\n")
