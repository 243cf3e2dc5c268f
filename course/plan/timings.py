"""Measured seconds and memory of each notebook: `docs/results/notebooks.json`, one record for each scale.

`course run --record` writes it; cards, documents and the expected times of a run read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.files import write_text

FILE = "docs/results/notebooks.json"
SCALES = {"cpu": "CPU", "gpu": "1 GPU", "multi-gpu": "2 GPUs"}


def load(root: Path) -> dict[str, dict[str, Any]]:
    """The records by scale; none where nothing was recorded yet.

    Raises:
        CourseError: when the file is there and is not a list of records.
    """
    path = root / FILE
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, list):
            raise ValueError(f"it holds {type(raw).__name__}")
        return {record["scale"]: record for record in map(_checked, raw)}
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeError are ValueErrors
        raise CourseError(f"{FILE} is not a list of records ({error}); `git checkout {FILE}` brings it back") from None


def _checked(record: Any) -> dict[str, Any]:
    """The record, with the types that its readers rely on.

    Raises:
        ValueError: naming what is not as it should be.
    """
    if not isinstance(record, dict):
        raise ValueError(f"a record is {record!r:.40}")
    for key in ("scale", "hardware"):
        if not isinstance(record.get(key), str):
            raise ValueError(f"{key} is {record.get(key)!r:.40}")
    notebooks = record.get("notebooks")
    if not isinstance(notebooks, dict):
        raise ValueError(f"notebooks is {notebooks!r:.40}")
    for name, entry in notebooks.items():
        seconds = entry.get("seconds") if isinstance(entry, dict) else None
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds < 1e9:
            raise ValueError(f"the seconds of {name} are {seconds!r:.40}")
    return record


def save(root: Path, record: dict[str, Any]) -> None:
    """Put a record in the place of the one of its scale.

    Notebooks that this record did not measure stay, where hardware and versions are the same.
    """
    records = load(root)
    old = records.get(record["scale"])
    if old and all(old.get(key) == record.get(key) for key in ("hardware", "driver", "python", "versions")):
        record = {**record, "notebooks": {**old["notebooks"], **record["notebooks"]}}
    records[record["scale"]] = record
    ordered = [records[scale] for scale in SCALES if scale in records]
    write_text(root / FILE, json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")


def seconds(records: dict[str, dict[str, Any]], scale: str, notebook: str) -> float | None:
    """Recorded seconds of a notebook at a scale."""
    entry = records.get(scale, {}).get("notebooks", {}).get(notebook)
    return None if entry is None else float(entry["seconds"])


def duration(value: float | None) -> str:
    """A time rounded to ten seconds, so that a table does not change with every run."""
    if value is None:
        return "not measured"
    rounded = max(10, round(value / 10) * 10)
    if rounded < 60:
        return f"under a minute ({rounded} s)"
    minutes, rest = divmod(rounded, 60)
    return f"{minutes} min" + (f" {rest} s" if rest else "")
