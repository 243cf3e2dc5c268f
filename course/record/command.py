"""Run the sections within a budget of time, and write each row to its file the moment it is there."""

from __future__ import annotations

import json
import math
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from course.doctor import probe
from course.errors import CourseError
from course.files import write_text
from course.plan.curriculum import Curriculum, RecordSection
from course.record.results import read_runs

RESULTS = "docs/results"
TOY = "runs/record"
VERSIONS = ("torch", "triton", "transformers", "pytorch-lightning", "numpy")
START_SECONDS = 120  # of the worker, to its first word: torch is imported


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        only: names of sections; all by default.
        budget: seconds for everything; None for no limit.
        toy: small sizes, on any machine, into `runs/record`.
        again: sections that are complete for this hardware too.
        handed: values for `Setting.options`.
        output: the folder of the records, if not the usual one.
    """

    only: tuple[str, ...] = ()
    budget: float | None = None
    toy: bool = False
    again: bool = False
    handed: dict[str, str] = field(default_factory=dict)
    output: Path | None = None


def seconds(text: str) -> float:
    """ "8m", "90s" or "480" in seconds.

    Raises:
        CourseError: for anything else.
    """
    found = re.fullmatch(r"(\d+)([ms]?)", text)
    if not found or not int(found[1]):
        raise CourseError(f"--budget {text!r} is no time; write 8m, 480s or 480")
    return int(found[1]) * (60 if found[2] == "m" else 1)


def listing(curriculum: Curriculum) -> str:
    """The sections in order of worth: name, seconds at most, what it measures, and for which hardware it is there."""
    lines = []
    for section in curriculum.records:
        runs = read_runs(curriculum.root / RESULTS / f"{section.name}.json")
        there = ", ".join(f"{run['hardware']} ({run['date']})" for run in runs if run.get("complete")) or "not measured"
        lines.append(f"{section.name:<20}{section.seconds:>3} s  {section.measures}\n{'':26}{there}")
    return "\n".join(lines)


def record(curriculum: Curriculum, options: Options, say: Callable[[str], Any] = print) -> int:
    """Measure; returns 1 when a section that was begun did not come to its end.

    Raises:
        CourseError: for a section that is not there, or records asked of a machine without a GPU.
    """
    begun = time.monotonic()
    sections = _chosen(curriculum, options)
    folder = options.output or curriculum.root / (TOY if options.toy else RESULTS)
    machine = probe.ask()
    if "error" in machine or "scale" not in machine:
        raise CourseError(f"nothing recorded: {machine.get('error', 'the scale is unknown')}; see `course doctor`")
    if machine["scale"]["name"] == "cpu" and not options.toy:
        raise CourseError("records are made on a GPU, and torch sees none here; --toy tries every section at toy size")
    head = {**_head(curriculum, machine), "command": shlex.join(["course", *sys.argv[1:]])}
    todo = []
    for section in sections:
        missing = [name for name in section.options if name not in options.handed]
        if missing:
            say(f"skipped  {section.name}: needs --option {missing[0]}=...")
        elif not options.again and _complete(folder, section, head):
            say(f"there    {section.name}")
        else:
            todo.append(section)
    end = math.inf if options.budget is None else begun + options.budget
    failed = 0
    while todo:
        fitting = [section for section in todo if time.monotonic() + section.seconds <= end]
        if not fitting:
            say(f"no time  {', '.join(section.name for section in todo)}: the same command goes on")
            break
        child = Child(curriculum.root, options, fitting, on_gpu=head["driver"] is not None)
        try:
            measured, badly = _listen(child, fitting, folder, head, end, say)
        finally:
            child.end()
        todo = [section for section in todo if section not in measured]
        failed += badly
    return int(failed > 0)


def _chosen(curriculum: Curriculum, options: Options) -> list[RecordSection]:
    names = {section.name: section for section in curriculum.records}
    for name in options.only:
        if name not in names:
            raise CourseError(f"--only {name}: no such section; they are {', '.join(names)}")
    return [section for section in curriculum.records if not options.only or section.name in options.only]


def _head(curriculum: Curriculum, machine: dict[str, Any]) -> dict[str, Any]:
    versions = {}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    git = ["git", "-C", str(curriculum.root)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
    except OSError:
        commit = ""
    return {
        "hardware": machine["scale"]["hardware"], "driver": machine["driver"], "python": python_version(),
        "versions": versions, "commit": commit or os.environ.get("COURSE_COMMIT", ""),
        "date": date.today().isoformat(),
    }  # fmt: skip


def _complete(folder: Path, section: RecordSection, head: dict[str, Any]) -> bool:
    runs = read_runs(folder / f"{section.name}.json")
    return any(run["hardware"] == head["hardware"] and run.get("complete") for run in runs)


def _save(folder: Path, section: RecordSection, run: dict[str, Any]) -> None:
    """Put a run in the place of the one on the same hardware."""
    path = folder / f"{section.name}.json"
    others = [old for old in read_runs(path) if old["hardware"] != run["hardware"]]
    write_text(path, json.dumps([*others, run], indent=1, ensure_ascii=False) + "\n")


class Child:
    """The process that measures, and what it says."""

    def __init__(self, root: Path, options: Options, sections: list[RecordSection], on_gpu: bool) -> None:
        size, handed = "toy" if options.toy else "full", json.dumps(options.handed)
        environ = dict(os.environ)
        if not on_gpu:
            environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
        self._process = subprocess.Popen(
            [sys.executable, "-m", "course.record.worker", str(root), size, handed, *(each.name for each in sections)],
            stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environ, start_new_session=True,
        )  # fmt: skip
        self._said: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line)
        self._said.put("")

    def message(self, until: float) -> dict[str, Any] | str:
        """Its next words; or, as a text, why there are none: it was silent until then, or is gone."""
        begun = time.monotonic()
        try:
            line = self._said.get(timeout=max(until - begun, 0.01))
        except queue.Empty:
            return "silent"
        return dict(json.loads(line)) if line else f"its process ended ({self._process.wait()})"

    def end(self) -> None:
        """Kill it with whatever it started."""
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _listen(
    child: Child, sections: list[RecordSection], folder: Path, head: dict[str, Any], end: float,
    say: Callable[[str], Any],
) -> tuple[list[RecordSection], int]:  # fmt: skip
    """Keep what the child says, until it is done, must be ended, or the next section does not fit before `end`.

    Returns the sections that were begun, and how many of them ended badly.
    """
    badly = 0
    for number, section in enumerate(sections):
        if number and time.monotonic() + section.seconds > end:
            return sections[:number], badly
        message = child.message(time.monotonic() + START_SECONDS)
        if isinstance(message, str):
            raise CourseError(f"nothing more recorded: {message} before {section.name} began")
        begun = time.monotonic()
        run: dict[str, Any] = {**head, "complete": False, "rows": []}
        say(f"begun    {section.name}: {section.measures}")
        while True:
            message = child.message(begun + section.seconds)
            if isinstance(message, dict) and "row" in message:
                run["rows"].append(message["row"])
                _save(folder, section, run)
                continue
            break
        missing = f"ended after {section.seconds} s" if message == "silent" else message
        if isinstance(missing, dict):
            missing = missing["missing"]
        run.update(complete=not missing, seconds=round(time.monotonic() - begun, 1))
        if missing:
            run["missing"] = missing
            badly += 1
        _save(folder, section, run)
        told = f"{section.name}: {len(run['rows'])} rows, {run['seconds']} s"
        say(f"FAILED   {told}; {missing}" if missing else f"ok       {told}")
        if missing:  # an error of the GPU stays with its process: the next section gets a new one
            return sections[: number + 1], badly
    return sections, badly
