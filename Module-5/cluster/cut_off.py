"""Rehearse a host that is cut off in mid-run, on one machine: two network namespaces, torchrun on each, one cable.

    uv run python Module-5/cluster/cut_off.py     # on Linux, as root

One run loses nothing. The other's cable is pulled: no host is told that the other is gone, and both must end by
themselves, within a minute and with an error that they show. When the cable is back, the run goes on from its last
checkpoint, and must end with the losses of the first. It prints a table, and stops whatever it has started. Where it
may not run it says why, and ends with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import network
import torch
from rehearse import EVERY, STEPS, TooLong, configuration, last_step, lines_of, wait_until

from course import scale
from course.files import write_text
from course.terminal import ended_by_sigterm

CUT_AT = STEPS // 2 + EVERY // 2  # between two checkpoints
TIMEOUT, BOUND = 15, 60  # seconds: that a collective waits, and within which both hosts must have ended
PORT = 29400


def torchrun(host: int, run: str) -> list[str]:
    """The command of a host, without the trainer's arguments."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "0",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{network.ADDRESSES[0]}:{PORT}", "--rdzv-id", run,
        "--rdzv-conf", f"is_host={int(host == 0)}", "--local-addr", network.ADDRESSES[host],
        "-m", "llm_scale", "--", "fit",
    ]  # fmt: skip


def error_of(output: Path) -> str:
    """The line in which a host's rank has said why it ended, without the folders of gloo's source; empty for none."""
    said = output.read_text("utf-8", errors="replace").splitlines()
    line = next((line for line in reversed(said) if line.startswith("llm-scale: ")), "")
    return re.sub(r"\[/\S*/", "[", line)


class Run:
    """A run on both hosts: its log, and what each host says."""

    def __init__(self, hosts: network.TwoHosts, folder: Path, name: str, strategy: str) -> None:
        self.hosts, self.folder, self.name, self.strategy = hosts, folder, name, strategy
        self.log = folder / f"{name}.jsonl"
        self._starts = 0

    def start(self) -> tuple[list[subprocess.Popen[bytes]], list[Path]]:
        """Begin, or go on from the last checkpoint; the hosts' processes and outputs."""
        self._starts += 1
        attempt = f"{self.name}-{self._starts}"
        outputs = [self.folder / f"{attempt}-host{host}.out" for host in (1, 2)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COURSE_CACHE": str(self.folder / "cache")}
        fit = [
            "--config", str(self.folder / "run.yaml"), "--strategy", self.strategy, "--accelerator", "cpu",
            "--timeout", str(TIMEOUT), "--ckpt_path", "last", "--run.folder", str(self.folder / self.name),
            "--log", str(self.log),
        ]  # fmt: skip
        commands = [[*torchrun(host, attempt), *fit] for host in (0, 1)]
        return [self.hosts.start(host, commands[host], environment, outputs[host]) for host in (0, 1)], outputs

    def finish(self, processes: Sequence[subprocess.Popen[bytes]], outputs: Sequence[Path]) -> None:
        """Wait for the run's end.

        Raises:
            TooLong: when it has not ended in five minutes.
            RuntimeError: when it has failed, with its error.
        """
        wait_until(lambda: None not in [each.poll() for each in processes], f"the end of {self.name}", 300)
        if any(each.returncode for each in processes):
            word = next(filter(None, map(error_of, outputs)), "without a word")
            raise RuntimeError(f"{self.name} has failed: {word}")


def rehearse(folder: Path, strategy: str, say: Callable[[str], Any] = print) -> dict[str, Any]:
    """Run both, and cut the second in two; the record.

    Raises:
        TooLong: when a part is not done in its time: above all, when a host that is cut off goes on waiting.
        RuntimeError: when a run fails that should not.
    """
    (folder / "run.yaml").write_text(json.dumps(configuration(folder)))
    with network.TwoHosts() as hosts:
        say(f"a run that loses nothing: {STEPS} steps of {strategy} on two hosts")
        whole = Run(hosts, folder, "whole", strategy)
        whole.finish(*whole.start())
        say(f"the same run, cut off after step {CUT_AT}")
        run = Run(hosts, folder, "cut", strategy)
        processes, outputs = run.start()
        wait_until(lambda: last_step(run.log) >= CUT_AT or None not in [each.poll() for each in processes],
                   f"step {CUT_AT}", 240)  # fmt: skip
        if last_step(run.log) < CUT_AT:
            run.finish(processes, outputs)
        hosts.cut()
        cut, ended = time.monotonic(), dict[int, float]()

        def all_ended() -> bool:
            for host, process in enumerate(processes):
                if process.poll() is not None:
                    ended.setdefault(host, time.monotonic() - cut)
            return len(ended) == len(processes)

        reached = last_step(run.log)
        wait_until(all_ended, "the end of both hosts after the cut", BOUND)
        said = [error_of(output) for output in outputs]
        left = [len(hosts.processes(name)) for name in hosts.names]
        hosts.mend()
        say("the cable is back: the run goes on")
        again = time.monotonic()
        processes, outputs = run.start()
        run.finish(processes, outputs)
        back = time.monotonic() - again
    return {
        "hardware": scale.hardware, "torch": torch.__version__, "date": date.today().isoformat(),
        "command": "Module-5/cluster/cut_off.py", "strategy": strategy, "checkpoint_every": EVERY,
        "timeout_seconds": TIMEOUT, "cut_at_step": reached, "stopped_after_seconds": [ended[0], ended[1]], "said": said,
        "processes_left": left, "seconds_after_return": back,
        "whole": [line["loss"] for line in lines_of(folder / "whole.jsonl")],
        "cut": [line["loss"] for line in lines_of(run.log)], "steps": [int(line["step"]) for line in lines_of(run.log)],
    }  # fmt: skip


def what_failed(record: dict[str, Any]) -> list[str]:
    """What does not hold of a record; empty for a rehearsal that held."""
    whole, cut = record["whole"], record["cut"]
    claims = {
        "both hosts said why they ended": all(record["said"]),
        "nothing was left running": not any(record["processes_left"]),
        "every step once": record["steps"] == list(range(1, len(whole) + 1)) and bool(whole),
        "the losses of the run that lost nothing": cut == whole,  # the same ranks and sums: bit for bit
    }
    return [claim for claim, held in claims.items() if not held]


def table(record: dict[str, Any]) -> str:
    """A record in a few lines."""
    first, second = record["stopped_after_seconds"]
    worst = max((abs(a - b) for a, b in zip(record["whole"], record["cut"], strict=False)), default=float("nan"))
    rows = [
        ("cut off after step", f"{record['cut_at_step']}"),
        ("a collective waits", f"{record['timeout_seconds']} s"),
        ("host 1 ended after", f"{first:.1f} s: {record['said'][0]}"),
        ("host 2 ended after", f"{second:.1f} s: {record['said'][1]}"),
        ("left running", f"{sum(record['processes_left'])} processes"),
        ("from its return to its end", f"{record['seconds_after_return']:.1f} s"),
        ("largest difference of a loss", f"{worst:.2g} nats over {len(record['cut'])} steps"),
    ]
    return "\n".join(f"{name:<28}  {value}" for name, value in rows)


def main() -> int:
    """Parse, rehearse, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="fsdp")
    parser.add_argument("--record", type=Path, help="write what happened to this JSON file")
    parser.add_argument("--keep", type=Path, help="keep logs and checkpoints in this new folder")
    options = parser.parse_args()
    if reason := network.missing():
        print(f"skipped: {reason}")
        return 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(ended_by_sigterm())  # a CI job that is stopped leaves no namespaces either
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rehearsal-")))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            record = rehearse(folder.resolve(), options.strategy)
        except (TooLong, RuntimeError) as error:
            for output in sorted(folder.glob("*.out")):
                print(output.name, *output.read_text("utf-8", errors="replace").splitlines()[-8:], sep="\n  ")
            print(f"failed: {error}")
            return 1
    print(table(record))
    if options.record:
        write_text(options.record, json.dumps(record, indent=1) + "\n")
    failed = what_failed(record)
    print(f"failed: not so: {', '.join(failed)}" if failed else "held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
