"""`course run --record`: keep what a run measured, and on what, in `docs/results/notebooks.json`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.metadata import version
from platform import python_version
from typing import Any

from course.doctor import probe
from course.errors import CourseError
from course.plan import timings
from course.plan.curriculum import Curriculum
from course.run.history import History

VERSIONS = ("torch", "pytorch-lightning", "transformers", "numpy")


def write(curriculum: Curriculum, state: History, notebooks: list[str]) -> str:
    """Record the seconds, peak memory and claims of a run without failures; returns a line that says so.

    Raises:
        CourseError: when a notebook failed or was not reached: nothing is recorded then.
    """
    finished = {path: state.finished(path) for path in notebooks}
    missing = [path for path, record in finished.items() if record is None or not record.ok]
    if missing:
        raise CourseError(f"not recorded: {len(missing)} of {len(notebooks)} notebooks did not run to the end")
    machine = probe.ask()
    if "scale" not in machine:
        raise CourseError(f"not recorded: {machine.get('error', 'the scale is unknown')}; see `course doctor`")
    record: dict[str, Any] = {
        "scale": machine["scale"]["name"],
        "hardware": machine["scale"]["hardware"],
        "driver": machine["driver"],
        "python": python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "commit": _commit(curriculum),
        "date": state.run[:10],
        "command": shlex.join(["course", *sys.argv[1:]]),
        "notebooks": {
            path: {
                "seconds": record.seconds,
                "peak_memory_bytes": record.peak_memory_bytes,
                "claims": record.claims,
            }
            for path, record in finished.items()
            if record is not None
        },
    }
    timings.save(curriculum.root, record)
    return f"recorded {len(notebooks)} notebooks at scale {record['scale']} in {timings.FILE}"


def _commit(curriculum: Curriculum) -> str:
    """The commit that ran, with "+" where files differ from it; empty outside git."""
    git = ["git", "-C", str(curriculum.root)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.stdout.strip() + ("+" if changes.stdout.strip() else "")
