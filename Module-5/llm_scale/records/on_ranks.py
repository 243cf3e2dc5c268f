"""Contenders measured in turns on ranks that torchrun starts; a row each, as it is there.

The ranks are a command's: `Ranks` needs a package that a GPU's image may lack. A contender that fails on a rank leaves
its peers in a collective. So all ranks end, its row says why, and the others are measured on new ranks.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_scale.records.contenders import CONTENDERS
from llm_scale.records.task import Task
from llm_scale.start import watched_ranks


@dataclass(frozen=True)
class Entry:
    """A row to be measured: its name, who trains, and what."""

    row: str
    contender: str
    task: Task


@dataclass(frozen=True)
class Turns:
    """How often and how long each contender trains.

    Attributes:
        rounds: turns of each, in turns with the others.
        warmup: steps of a turn that do not count.
        steps: steps of a turn that do.

    Raises:
        ValueError: for less than one of each.
    """

    rounds: int = 5
    warmup: int = 2
    steps: int = 5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")


def measure(entries: Sequence[Entry], ranks: int, turns: Turns, memory: int) -> Iterator[dict[str, Any]]:
    """A row for each entry; entries of one model in turns with each other.

    Args:
        entries: with different names.
        ranks: processes, each with a GPU of its own, or all on the CPU.
        turns: how often and how long.
        memory: bytes that a rank has; an entry whose predicted peak is larger is not tried.

    Raises:
        RuntimeError: when the ranks end without a word on which entry failed.
    """
    left = []
    for entry in entries:
        contender = CONTENDERS[entry.contender]
        missing, predicted = contender.missing(entry.task), None
        if not missing:
            predicted = contender.predicted(entry.task, ranks)
        if predicted is not None and predicted > memory:
            missing = f"{predicted / 1e9:.1f} GB predicted, and a rank has {memory / 1e9:.1f} GB"
        if missing:
            yield {"row": entry.row, "model": entry.task.model, "predicted_peak": predicted, "missing": missing}
        else:
            left.append(entry)
    while left:
        told = set()
        for row in _rows(left, ranks, turns):
            if row["row"] not in told:  # several ranks tell of one failure
                told.add(row["row"])
                yield row
        if not told:
            raise RuntimeError("the ranks ended before a row was there; what they said stands above")
        left = [entry for entry in left if entry.row not in told]


def _rows(entries: Sequence[Entry], ranks: int, turns: Turns) -> Iterator[dict[str, Any]]:
    """What one start of the ranks gives: all rows, or those up to one that failed."""
    with tempfile.TemporaryDirectory(prefix="llm-scale-") as folder:
        job, told = Path(folder) / "job.json", Path(folder) / "rows"
        job.write_text(json.dumps({"turns": asdict(turns), "entries": [asdict(entry) for entry in entries]}), "utf-8")
        told.touch()
        seen = 0
        for _ in watched_ranks(ranks, "llm_scale.records.rank", [str(job), str(told), str(os.getpid())]):
            lines = told.read_text("utf-8").split("\n")[:-1]
            for line in lines[seen:]:
                yield json.loads(line)
            seen = len(lines)
