"""One of the ranks that `on_ranks` starts: trains as each contender in turns, and writes the rows."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from llm_core.costs.counts import flops_per_token, num_parameters
from llm_core.costs.speed import peak_flops
from llm_precision.benchmark import why
from llm_precision.meters import Seconds, utilisation

from llm_scale.records.contenders import CONTENDERS
from llm_scale.records.on_ranks import Entry, Turns
from llm_scale.records.task import Task
from llm_scale.records.watch import Taken, peak_on_cpu, turn
from llm_scale.worker import join

BASE = "fsdp2"  # what the other seconds of a round are divided by
TIMEOUT = 120.0  # seconds of a collective


def main(arguments: Sequence[str]) -> None:
    """Measure what the job's file says."""
    job, told, starter = json.loads(Path(arguments[0]).read_text("utf-8")), Path(arguments[1]), int(arguments[2])
    end_without(starter)
    warnings.filterwarnings("ignore", message=".*")  # libraries' advice, once a turn
    join(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), TIMEOUT)
    turns = Turns(**job["turns"])
    entries = [Entry(each["row"], each["contender"], Task(**each["task"])) for each in job["entries"]]
    for _, group in itertools.groupby(entries, lambda entry: entry.task.model):
        for row in rows_of(list(group), turns, told):
            if dist.get_rank() == 0:
                say(told, row)
    dist.destroy_process_group()


def rows_of(entries: Sequence[Entry], turns: Turns, told: Path) -> list[dict[str, Any]]:
    """Rows of entries in turns (A B C A B C); on a CPU the bytes of each are measured before, since that takes time."""
    peaks, times = [0.0 for _ in entries], [list[Taken]() for _ in entries]
    if entries[0].task.device == "cpu":
        peaks = [tried(entry, told, peak_on_cpu) for entry in entries]
    for _ in range(turns.rounds):
        for entry, taken in zip(entries, times, strict=True):
            taken.append(
                tried(entry, told, lambda way, task=entry.task: turn(way, task.device, turns.warmup, turns.steps))
            )
    bases = [taken for entry, taken in zip(entries, times, strict=True) if entry.contender == BASE]
    found = []
    for entry, peak, taken in zip(entries, peaks, times, strict=True):
        seconds = [each.seconds for each in taken]
        row = described(entry, statistics.median(seconds))
        row |= {"all_seconds": seconds, "spread": Seconds.of(seconds).spread}
        row["peak"] = peak or max(each.peak for each in taken)
        row["processor_seconds"] = statistics.median(each.processor for each in taken)
        if bases:
            pairs = list(zip(taken, bases[0], strict=True))
            row["seconds_over_fsdp2"] = Seconds.of([a.seconds / b.seconds for a, b in pairs])._asdict()
            row["processor_over_fsdp2"] = Seconds.of([a.processor / b.processor for a, b in pairs])._asdict()
        found.append(row)
    return found


def tried(entry: Entry, told: Path, measure: Any) -> Any:
    """What `measure` finds of the entry's way of training.

    Raises:
        SystemExit: when it fails, with a row that says why.
    """
    task = entry.task
    try:
        return measure(partial(CONTENDERS[entry.contender].train, task))
    except Exception as error:
        say(told, {"row": entry.row, "model": task.model, "missing": f"{why(error)}, on rank {dist.get_rank()}"})
        time.sleep(1)  # a peer that fails too writes its own row
        raise SystemExit(1) from error


def described(entry: Entry, seconds: float) -> dict[str, Any]:
    """What a row says beside its measures: the task, tokens/s of all ranks, and the share of a GPU's dense peak."""
    task, ranks = entry.task, dist.get_world_size()
    tokens = task.rows * task.time
    peak = peak_flops(torch.cuda.get_device_name()) if task.device == "cuda" else None
    return {
        "row": entry.row, "model": task.model, "parameters": num_parameters(task.config), "ranks": ranks,
        "rows": task.rows, "time": task.time, "precision": task.precision, "checkpointing": task.checkpointing,
        "predicted_peak": CONTENDERS[entry.contender].predicted(task, ranks), "seconds": seconds,
        "tokens_per_second": ranks * tokens / seconds, "peak_flops": peak,
        "mfu": utilisation(flops_per_token(task.config, task.time) * tokens, seconds, peak),
    }  # fmt: skip


def say(told: Path, row: dict[str, Any]) -> None:
    """Append a row for the process that has started the ranks."""
    with told.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def end_without(starter: int) -> None:
    """End this process when the one that wanted the rows is gone: torchrun's ranks have a session of their own, and
    outlive a torchrun that is killed."""

    def look() -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(starter, 0)
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
