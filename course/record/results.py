"""What was recorded: files of runs in `docs/results/`, one run for each hardware."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.plan.curriculum import find_root


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The runs of a file of records, one for each hardware; none where there is no file.

    Raises:
        CourseError: for a file that holds something else.
    """
    if not path.is_file():
        return []
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(runs, list) or not all(isinstance(run, dict) and "hardware" in run for run in runs):
            raise ValueError("it is no list of runs")
    except ValueError as error:
        raise CourseError(f"{path.name} holds no records ({error}); bring it back, or move it away") from None
    return runs


def recorded(section: str) -> dict[str, Any] | None:
    """The last run of a section of `course record`, or None, with a line on how to make it, where there is none.

    Its rows are in "rows"; a line is printed that says where and when they were measured.
    """
    runs = read_runs(find_root() / "docs" / "results" / f"{section}.json")
    if not runs:
        print(f"not measured on a GPU yet; `course record --only {section}` does it")
        return None
    run = runs[-1]
    print(f"recorded on {run['date']}: {run['hardware']}, torch {run['versions']['torch']}")
    return run
