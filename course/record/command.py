"""Run the sections within a budget of time, and write each row to its file the moment it is there."""

from __future__ import annotations

import json
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
    """"8m", "90s" or "480" in seconds.

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
        runs = _runs(curriculum.root / RESULTS / f"{section.name}.json")
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
    failed = 0
    while todo:
        left = None if options.budget is None else options.budget - (time.monotonic() - begun)
        if left is not None and left < min(section.seconds for section in todo):
            say(f"no time  {', '.join(section.name for section in todo)}: the same command goes on")
            break
        todo, ended_badly = _work(curriculum, options, todo, folder, head, say, begun)
        failed += ended_badly
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
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return {
        "hardware": machine["scale"]["hardware"], "driver": machine["driver"], "python": python_version(),
        "versions": versions, "commit": commit or os.environ.get("COURSE_COMMIT", ""),
        "date": date.today().isoformat(),
    }  # fmt: skip


def _runs(path: Path) -> list[dict[str, Any]]:
    """The runs of a file of records, one for each hardware; none where there is no file."""
    if not path.is_file():
        return []
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(runs, list) or not all(isinstance(run, dict) and "hardware" in run for run in runs):
            raise ValueError("it is no list of runs")
    except ValueError as error:
        raise CourseError(f"{path.name} holds no records ({error}); bring it back, or move it away") from None
    return runs


def _complete(folder: Path, section: RecordSection, head: dict[str, Any]) -> bool:
    runs = _runs(folder / f"{section.name}.json")
    return any(run["hardware"] == head["hardware"] and run.get("complete") for run in runs)


def _save(folder: Path, section: RecordSection, run: dict[str, Any]) -> None:
    """Put a run in the place of the one on the same hardware."""
    path = folder / f"{section.name}.json"
    others = [old for old in _runs(path) if old["hardware"] != run["hardware"]]
    write_text(path, json.dumps([*others, run], indent=1, ensure_ascii=False) + "\n")


def _work(
    curriculum: Curriculum, options: Options, todo: list[RecordSection], folder: Path, head: dict[str, Any],
    say: Callable[[str], Any], begun: float,
) -> tuple[list[RecordSection], int]:  # fmt: skip
    """One worker over as many sections as it lives for; returns those that are left, and how many ended badly."""
    handed, names = json.dumps(options.handed), [section.name for section in todo]
    size = "toy" if options.toy else "full"
    environ = dict(os.environ)
    if head["driver"] is None:
        environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
    child = subprocess.Popen(
        [sys.executable, "-m", "course.record.worker", str(curriculum.root), size, handed, *names],
        stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environ, start_new_session=True,
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=listen, daemon=True).start()
    failed, now, run, since, limit = 0, None, {}, time.monotonic(), float(START_SECONDS)
    try:
        while True:
            patience = since + limit - time.monotonic()
            if options.budget is not None:
                patience = min(patience, begun + options.budget - time.monotonic())
            try:
                line = lines.get(timeout=max(patience, 0.01))
            except queue.Empty:
                line = None
            message = json.loads(line) if line else {}
            if "begin" in message:
                now, since, limit = todo[0], time.monotonic(), float(todo[0].seconds)
                run = {**head, "complete": False, "rows": []}
                say(f"begun    {now.name}: {now.measures}")
            elif "row" in message and now is not None:
                run["rows"].append(message["row"])
                _save(folder, now, run)
            elif "end" in message and now is not None:
                run.update(complete=not message["missing"], seconds=round(time.monotonic() - since, 1))
                if message["missing"]:
                    run["missing"] = message["missing"]
                    failed += 1
                _save(folder, now, run)
                say(f"{'FAILED ' if message['missing'] else 'ok     '}  {now.name}: {len(run['rows'])} rows, "
                    f"{run['seconds']} s{'; ' if message['missing'] else ''}{message['missing']}")  # fmt: skip
                todo, now = todo[1:], None
                left = None if options.budget is None else options.budget - (time.monotonic() - begun)
                if not todo or (left is not None and left < todo[0].seconds):
                    return (todo if not todo else _fitting(todo, left)), failed
            else:  # silence past the limit, or the worker is gone
                reason = f"ended after {limit:.0f} s" if line is None else f"its process ended ({child.wait()})"
                if now is None:
                    raise CourseError(f"nothing more recorded: the worker {reason} before a section began")
                run.update(complete=False, missing=reason, seconds=round(time.monotonic() - since, 1))
                _save(folder, now, run)
                say(f"FAILED   {now.name}: {len(run['rows'])} rows; {reason}")
                return todo[1:], failed + 1
    finally:
        with suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _fitting(todo: list[RecordSection], left: float | None) -> list[RecordSection]:
    """Those that still fit first: a short one may where a long one does not."""
    return sorted(todo, key=lambda section: left is not None and section.seconds > left)
