"""Rehearse the loss of a worker and of a node, on one machine: a two-node Slurm, torchrun, and BabyGPT under FSDP2.

    uv run python Module-5/cluster/rehearse.py             # where Slurm is installed, as root
    uv run python Module-5/cluster/rehearse.py --install   # fetch it from Debian first

One run loses nothing. The other, the same job under Slurm, loses a worker (SIGKILL: torchrun starts all ranks anew),
then a node (Slurm puts the job back in its queue). Both must end with the same losses. It prints a table, draws the two
curves, and stops whatever it has started. Where it may not run it says why, and ends with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import slurm
import torch

from course import plots, scale
from course.files import write_text
from course.terminal import ended_by_sigterm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STEPS, EVERY = 240, 20
MODEL = {"hidden_size": 64, "num_hidden_layers": 4, "max_position_embeddings": 64}


def configuration(folder: Path) -> dict[str, Any]:
    """A small run, on the source of this Python's `argparse` and `typing`."""
    (folder / "text.txt").write_text(inspect.getsource(argparse) + inspect.getsource(typing), "utf-8")
    return {
        "data": {"corpus": f"text:{folder / 'text.txt'}", "tokenizer": "bpe-300", "context": 64, "batch_size": 4,
                 "val_percent": 10, "test_percent": 10, "progress": False},
        "model": {"config": MODEL, "learning_rate": 3e-3, "warmup_steps": 20},
        "trainer": {"max_steps": STEPS, "val_check_interval": STEPS},
        "run": {"checkpoint_every": EVERY},
    }  # fmt: skip


class TooLong(RuntimeError):
    """A part of the rehearsal was not done in its time."""


def wait_until(done: Callable[[], Any], what: str, seconds: float) -> Any:
    """What `done` gives once it is true.

    Raises:
        TooLong: when it does not become so.
    """
    end = time.monotonic() + seconds
    while not (value := done()):
        if time.monotonic() > end:
            raise TooLong(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)
    return value


def lines_of(path: Path) -> list[dict[str, float]]:
    """The whole lines of a log."""
    text = path.read_text("utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1] if line]


def last_step(path: Path) -> int:
    """The last step in a log; 0 for none."""
    lines = lines_of(path)
    return int(lines[-1]["step"]) if lines else 0


def a_worker(rank: int) -> int | None:
    """The process of a rank of the job; None while there is none."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            inside = "SLURM_JOB_ID" in environment and environment.get("RANK") == str(rank)
            if inside and "LOCAL_RANK" in environment and "llm_scale" in process.cmdline():
                return process.pid
    return None


def rehearse(folder: Path, say: Callable[[str], Any] = print) -> dict[str, Any]:
    """Run both, and lose things; the record.

    Raises:
        TooLong: see above.
        RuntimeError: when Slurm does not start.
    """
    (folder / "run.yaml").write_text(json.dumps(configuration(folder)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COURSE_CACHE": str(folder / "cache")}
    fit = ["--config", str(folder / "run.yaml")]
    say(f"a run that loses nothing: {STEPS} steps on two ranks")
    whole_run = subprocess.Popen(
        [sys.executable, "-m", "llm_scale", "fit", *fit, "--strategy", "fsdp", "--devices", "2", "--accelerator", "cpu",
         "--run.folder", str(folder / "whole"), "--log", str(folder / "whole.jsonl")],
        env=environment, cwd=ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        if whole_run.wait(600):
            raise RuntimeError("the run that loses nothing has failed; what it said is above")
    finally:
        slurm.kill(whole_run.pid)  # with the ranks that it has started
    log, events, seen = folder / "cut.jsonl", list[dict[str, Any]](), list[dict[str, float]]()
    with slurm.Slurm(folder / "slurm") as cluster:
        began = time.monotonic()

        def note(what: str) -> None:
            events.append({"what": what, "step": last_step(log), "seconds": time.monotonic() - began})
            say(f"{events[-1]['seconds']:6.1f} s  step {events[-1]['step']:>4}  {what}")

        def reached(step: int) -> Callable[[], bool]:
            def done() -> bool:
                at = last_step(log)
                if not seen or seen[-1]["step"] != at:
                    seen.append({"seconds": time.monotonic() - began, "step": at})
                return at >= step

            return done

        cluster.environment.update(
            OMP_NUM_THREADS="1",
            COURSE_CACHE=str(folder / "cache"),
            PYTHON=sys.executable,
            RANKS="1",
            LOCAL_ADDRESS="127.0.0.1",
        )
        job = cluster.ask(
            "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append",
            f"--chdir={ROOT}", f"--output={folder}/job.out", "--export=ALL", str(HERE / "job"), *fit,
            "--accelerator", "cpu", "--run.folder", str(folder / "cut"), "--log", str(log),
        ).strip()  # fmt: skip
        note(f"job {job} submitted")
        wait_until(reached(STEPS // 4), "the job's first steps", 240)
        os.kill(wait_until(lambda: a_worker(1), "a worker of rank 1", 10), signal.SIGKILL)
        note("worker of rank 1 killed")
        lost = last_step(log)
        wait_until(lambda: last_step(log) < lost or last_step(log) >= lost + EVERY, "torchrun's new start", 240)
        note("torchrun has started all ranks anew")
        wait_until(reached(STEPS // 2), "steps after the new start", 240)
        cluster.lose_node("node2")
        note("node2 lost")
        wait_until(lambda: cluster.field("job", job, "Restarts") == "1", "Slurm's putting back of the job", 120)
        note("Slurm has put the job back in its queue")
        cluster.repair_node("node2")
        wait_until(lambda: cluster.state("node2") in ("IDLE", "ALLOCATED", "MIXED"), "node2's return", 60)
        # Slurm waits two minutes before it starts such a job again; a rehearsal need not.
        with contextlib.suppress(subprocess.SubprocessError):
            cluster.ask("scontrol", "update", f"jobid={job}", "starttime=now")
        note("node2 is back")
        wait_until(reached(STEPS), "the run's end", 400)
        wait_until(lambda: cluster.field("job", job, "JobState") == "COMPLETED", "the job's end", 60)
        note("run complete")
    whole, cut = lines_of(folder / "whole.jsonl"), lines_of(log)
    return {
        "hardware": scale.hardware, "torch": torch.__version__, "date": date.today().isoformat(),
        "slurm": subprocess.run(["slurmctld", "-V"], capture_output=True, text=True).stdout.strip(),
        "command": "Module-5/cluster/rehearse.py", "checkpoint_every": EVERY, "events": events, "progress": seen,
        "whole": [line["loss"] for line in whole], "cut": [line["loss"] for line in cut],
        "steps": [int(line["step"]) for line in cut],
    }  # fmt: skip


def main() -> int:
    """Parse, rehearse, print, draw; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="fetch Slurm from Debian where it is missing")
    parser.add_argument("--record", type=Path, help="write what happened to this JSON file")
    parser.add_argument("--figure", type=Path, default=Path("rehearsal.png"), help="the two curves")
    parser.add_argument("--keep", type=Path, help="keep logs and checkpoints in this new folder")
    options = parser.parse_args()
    if options.install and slurm.missing() and not slurm.missing().startswith("this is"):
        slurm.install()
    if reason := slurm.missing():
        print(f"skipped: {reason}")
        return 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(ended_by_sigterm())  # a CI job that is stopped leaves no daemons either
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rehearsal-")))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            record = rehearse(folder.resolve())
        except TooLong as error:
            output = folder / "job.out"
            print(
                *(output.read_text("utf-8", errors="replace").splitlines()[-15:] if output.is_file() else []), sep="\n"
            )
            print(f"failed: {error}")
            return 1
    worst = max((abs(a - b) for a, b in zip(record["whole"], record["cut"], strict=False)), default=float("inf"))
    for event in record["events"]:
        print(f"{event['seconds']:8.1f} s   step {event['step']:>4}   {event['what']}")
    same = record["steps"] == list(range(1, STEPS + 1)) and len(record["whole"]) == STEPS and worst < 1e-3
    verdict = "the same curve" if same else "NOT the same curve"
    print(f"largest difference of a loss: {worst:.2g} nats over {len(record['cut'])} steps: {verdict}")
    from llm_scale import figures

    plots.use_style()
    figures.interrupted(record).savefig(options.figure, dpi=150)
    print(f"drawn: {options.figure}")
    if options.record:
        write_text(options.record, json.dumps(record, indent=1) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
