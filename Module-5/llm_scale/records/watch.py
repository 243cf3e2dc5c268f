"""A turn of training on this rank: a few steps that count, after a few that do not; their seconds and highest bytes.

All ways of training are watched alike: each says when a step is done, be it a loop of a few lines or Lightning's.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from llm_core.costs.memory import peak_bytes
from llm_precision.meters import synchronize

from llm_scale.collectives import from_all

REPEATS = 3  # of the memory on a CPU


class Taken(NamedTuple):
    """What a step took.

    Attributes:
        seconds: by the clock.
        processor: seconds in which this process ran on a CPU, which others leave alone.
        peak: on a GPU the most bytes of tensors beyond those that were there before the turn; 0 on a CPU.
    """

    seconds: float
    processor: float
    peak: float


class Watch:
    """Counts a turn's steps and times those that count; made anew for each turn.

    The ranks meet before the first step that counts, so that none is charged with the others' setting up.

    Args:
        device: "cpu" or "cuda".
        warmup: steps before those that count: states are made, buckets are laid out.
        steps: that count.
    """

    def __init__(self, device: str, warmup: int, steps: int) -> None:
        self.device, self.warmup, self.steps, self.total = device, warmup, steps, warmup + steps
        self.done, self.begun, self.taken = 0, (0.0, 0.0), Taken(0.0, 0.0, 0.0)
        self.before = torch.cuda.memory_allocated() if device == "cuda" else 0

    def step_done(self) -> None:
        """To be called after each step, the optimiser's part included."""
        self.done += 1
        if self.done == self.warmup:
            synchronize(self.device)
            dist.barrier()
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.begun = time.perf_counter(), time.process_time()
        elif self.done == self.total:
            synchronize(self.device)
            seconds, processor = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]
            peak = torch.cuda.max_memory_allocated() - self.before if self.device == "cuda" else 0
            self.taken = Taken(seconds / self.steps, processor / self.steps, peak)


Way = Callable[[Watch], None]  # trains anew for `watch.total` steps


def turn(way: Way, device: str, warmup: int, steps: int) -> Taken:
    """What a step that counts takes, each number on the rank where it is most; every rank calls it.

    Raises:
        RuntimeError: when other steps were made than asked for.
    """
    free(device)
    watch = Watch(device, warmup, steps)
    way(watch)
    if watch.done != watch.total:
        raise RuntimeError(f"{watch.done} steps were made, and {watch.total} were asked for")
    return Taken(*(max(from_all(each)) for each in watch.taken))


def peak_on_cpu(way: Way) -> float:
    """The most bytes of tensors that two steps hold, beyond those that were there before; on the rank with the most.

    torch's profiler counts them, from the beginning of the turn. It does not see what gloo's own thread frees, which
    can only make the sum larger: the least of several turns is taken.
    """
    peaks = []
    for _ in range(REPEATS):
        free("cpu")
        peaks.append(peak_bytes(lambda: way(Watch("cpu", 1, 1))))
    return max(from_all(min(peaks)))


def free(device: str) -> None:
    """Let go of what the last turn left."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
