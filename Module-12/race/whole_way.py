"""The whole way from beginning to end: seconds and claims. And the quick way, killed again and again: the same files?

`uv run python Module-12/race/whole_way.py --record docs/results/way.json` takes a quarter of an hour on two cores. The
quick way, up to its last stage that leaves files, is walked undisturbed, and once more with a SIGKILL at moments that
are drawn, started again each time.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from llm_ops.way.page import lines
from llm_ops.way.settings import QUICK, Settings
from llm_ops.way.stage import CLAIMS, Seal, any_seal
from llm_ops.way.stages import stages_of

from course import claims
from course.files import write_text
from course.hardware import hardware
from course.record.results import read_runs

LAST = "export"  # what comes after it leaves no files to compare
QUICKLY = ["--quick", "--stop_after", LAST]


def walking(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "llm_ops.cli", "way", str(folder), *options])


def killed_walk(folder: Path, options: list[str], between: float, seed: int) -> int:
    """Walk to the end through kills at exponential times; how many there were.

    A stage that never ends within the time between two kills gets more of it: the next pauses are longer.

    Raises:
        RuntimeError: when the way fails by itself.
    """
    dice, kills = random.Random(seed), 0
    while True:
        process, until = walking(folder, options), time.monotonic() + dice.expovariate(1 / between)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills, between = kills + 1, 1.2 * between
    if process.returncode:
        raise RuntimeError(f"the way ended with {process.returncode}")
    return kills


def seals(folder: Path, settings: Settings, last: str = "") -> dict[str, Seal]:
    """Of a way that came to its end, or to a stage."""
    names = [stage.name for stage in stages_of(settings)]
    names = names[: names.index(last) + 1] if last else names
    found = {name: any_seal(folder / name) for name in names}
    missing = [name for name, seal in found.items() if seal is None]
    if missing:
        raise RuntimeError(f"{missing[0]} has no seal")
    return {name: seal for name, seal in found.items() if seal}


def stage_record(folder: Path, seal: Seal) -> dict[str, Any]:
    """What the record says of a stage."""
    made = claims.read(folder / seal.stage / CLAIMS)
    return {
        "stage": seal.stage, "seconds": round(seal.seconds, 1), "held": made.held, "skipped": len(made.skipped),
        "found": list(lines(seal)),
        "commands": seal.commands,
    }  # fmt: skip


def main() -> None:
    """Walk twice, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--whole", type=Path, help="the folder of a way that was walked; else one is walked first")
    parser.add_argument("--quick", type=Path, help="the folder of a quick way that was walked; else likewise")
    parser.add_argument("--between", type=float, default=30.0, help="seconds between two kills at first (30)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        whole = options.whole or Path(place) / "whole"
        quick, killed = options.quick or Path(place) / "quick", Path(place) / "killed"
        if walking(whole, []).wait() or walking(quick, QUICKLY).wait():
            raise RuntimeError("an undisturbed way failed")
        kills = killed_walk(killed, QUICKLY, options.between, seed=0)
        there, again = (seals(each, QUICK, LAST) for each in (quick, killed))
        differ = [name for name in there if there[name].digest != again[name].digest]
        first = seals(whole, Settings())
        record = {
            "date": date.today().isoformat(), "hardware": hardware(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "command": "Module-12/race/whole_way.py --record docs/results/way.json", "settings": vars(Settings()),
            "stages": [stage_record(whole, seal) for seal in first.values()],
            "killed": {"kills": kills, "same_digests": not differ, "differ": differ},
        }  # fmt: skip
    minutes = sum(seal.seconds for seal in first.values()) / 60
    print(f"{minutes:.1f} minutes; {kills} kills; differ: {differ or 'none'}")
    if options.record:
        others = [run for run in read_runs(options.record) if run["hardware"] != record["hardware"]]
        write_text(options.record, json.dumps([*others, record], indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
