"""What a step costs: seconds and their spread, bytes at the peak, FLOPs counted, and the share of the hardware's peak.

Each meter is tested against something known: a function that sleeps, a tensor of known size, a product of known FLOPs.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from llm_core.costs.memory import memory_curve


class Seconds(NamedTuple):
    """The times of several rounds: their median, and the quartiles between which half of them lie."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Distance of the quartiles as a share of the median."""
        return (self.high - self.low) / self.median

    @classmethod
    def of(cls, rounds: list[float]) -> Seconds:
        """Summarise the seconds of at least one round."""
        if len(rounds) == 1:
            return cls(rounds[0], rounds[0], rounds[0])
        low, median, high = statistics.quantiles(rounds, n=4, method="inclusive")
        return cls(median, low, high)


def synchronize(device: str) -> None:
    """Wait until the GPU has done what it was given; a CPU is never ahead."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: str = "cpu", repeats: int = 1) -> float:
    """Wall time of one `work()`, in seconds: the mean of `repeats` calls in a row."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def interleaved(
    works: Mapping[str, Callable[[], Any]], device: str = "cpu", rounds: int = 7, warmup: int = 2, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds of several pieces of work in turns (A B A B ...), so that whatever else the machine does falls on all.

    Args:
        works: what to time, by name.
        device: "cpu" or "cuda".
        rounds: turns that count.
        warmup: turns before them that do not: caches fill, kernels are chosen or compiled.
        repeats: calls of a turn; more for work that is shorter than the clock is fine.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warmup + rounds):
        for name, work in works.items():
            seconds = seconds_of(work, device, repeats)
            if turn >= warmup:
                times[name].append(seconds)
    return times


def held_and_peak(build: Callable[[], Callable[[], Any]], device: str = "cpu") -> tuple[Callable[[], Any], int, int]:
    """Build a piece of work, run it twice, and say what it holds in between and at its highest, in bytes of tensors.

    The first call counts in neither: lasting states (an optimiser's) are made in it.

    Returns:
        The work, the bytes that it holds between two calls, and the most that it holds during the second.
    """
    made: list[Callable[[], Any]] = []

    def begin() -> None:
        made.append(build())
        made[0]()

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        begin()
        gc.collect()
        held = torch.cuda.memory_allocated() - before
        torch.cuda.reset_peak_memory_stats()
        made[0]()
        torch.cuda.synchronize()
        return made[0], held, torch.cuda.max_memory_allocated() - before
    held = [0, *memory_curve(begin).held][-1]
    return made[0], held, held + max(memory_curve(made[0]).held, default=0)


def count_flops(work: Callable[[], Any]) -> int:
    """FLOPs of the matrix products and the attention that `work()` runs, two for a multiplication and its addition.

    On tensors of the `meta` device: there they are complete (a CPU's fused attention is not seen), and nothing is
    computed. Attention counts as full T x T products.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which must not be before `kernel`

    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return int(counter.get_total_flops())


def utilisation(flops: float, seconds: float, peak: float | None) -> float | None:
    """MFU, model FLOPs utilisation: the share of `peak` FLOP/s that reaches the model; None where no peak is known.

    Chowdhery et al. 2022, appendix B. A peak is that of dense products in the precision that is used.
    """
    return None if peak is None else flops / seconds / peak
