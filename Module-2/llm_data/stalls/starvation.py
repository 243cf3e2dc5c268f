"""The loader and the model as a queue: formulas, a simulator of torch's `DataLoader`, and datasets slow on purpose.

Times are in whatever unit the caller uses; those of `feed` and of the datasets are seconds.
Source for the idea of a data stall: Mohan et al. 2021, arXiv:2007.06775. What the simulator mirrors is
`torch.utils.data.dataloader._MultiProcessingDataLoaderIter` with its default `in_order=True`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

MAIN_PROCESS = -1
Seconds = float


def step_time(load: Seconds, compute: Seconds, workers: int) -> float:
    """Time of one training step in the steady state: `load + compute` without workers, else max(compute, load / W).

    Args:
        load: time to make one batch, in one process.
        compute: time of the model on one batch.
        workers: `num_workers` of the DataLoader; 0 loads in the main process.

    Raises:
        ValueError: for a negative or infinite time, or a negative number of workers.
    """
    refuse_impossible(load, compute, workers)
    if workers == 0:
        return load + compute
    return max(compute, load / workers)


def waiting_share(load: Seconds, compute: Seconds, workers: int) -> float:
    """Share of a steady step in which the model waits for data: 1 - compute / step. Arguments as in `step_time`.

    Raises:
        ValueError: as `step_time`, or when both times are 0 and there is no step to have a share of.
    """
    step = step_time(load, compute, workers)
    if step == 0:
        raise ValueError("load and compute are both 0: a step without time has no waiting share")
    return 1 - compute / step


def break_even_workers(load: Seconds, compute: Seconds) -> int:
    """The smallest number of workers with which the model never waits: load / compute, rounded up.

    A billionth is forgiven before rounding, so that 0.07 / 0.01 = 7.000000000000001 is 7.

    Raises:
        ValueError: for a negative or infinite time, or `compute` 0, which no number of workers can feed.
    """
    refuse_impossible(load, compute)
    if compute == 0:
        raise ValueError("compute=0: no number of workers keeps up with a model that takes no time; give it its time")
    return math.ceil(load / compute * (1 - 1e-9))


def total_time(load: Seconds, compute: Seconds, workers: int, batches: int) -> float:
    """Time of `batches` steps from a cold start, filling included.

    The last batch is delivered after one load and then the slowest way through the others, which either follow the
    model (n - 1 computes) or the worker that makes the last batch (one load for each round of W batches).

    Raises:
        ValueError: as `step_time`, or for a negative number of batches.
    """
    if batches < 0:
        raise ValueError(f"batches={batches}: give 0 or more")
    step = step_time(load, compute, workers)
    if batches == 0 or workers == 0:
        return batches * step
    rounds, rest = divmod(batches - 1, workers)
    return load + max((batches - 1) * compute, rounds * load + rest * compute) + compute


@dataclass(frozen=True)
class Step:
    """One step of the main process: it asks for a batch, the batch is delivered, the model is done with it."""

    asked: Seconds
    delivered: Seconds
    done: Seconds

    @property
    def wait(self) -> Seconds:
        """Time between asking and delivery."""
        return self.delivered - self.asked


@dataclass(frozen=True)
class SimulatedStep(Step):
    """A step with what only the simulator sees: which worker loaded the batch, from when until when."""

    worker: int
    load_start: Seconds
    ready: Seconds


def simulate(
    loads: Sequence[Seconds], computes: Sequence[Seconds], workers: int, prefetch_factor: int = 2
) -> list[SimulatedStep]:
    """What torch's DataLoader does with batches that take `loads` to make and `computes` to use.

    Batch k belongs to worker k mod W. It is sent to that worker when batch k - prefetch_factor * W is delivered
    (the first ones at once), waits there for the worker's earlier batches, and is delivered in order.

    Args:
        loads: time to make each batch.
        computes: time of the model on each batch; as many.
        workers: 0 loads in the main process.
        prefetch_factor: batches in flight for each worker.

    Raises:
        ValueError: for lists of unequal length, bad times, or numbers that torch would refuse.
    """
    _check_times("loads", loads)
    _check_times("computes", computes)
    _check_workers(workers)
    if len(loads) != len(computes):
        raise ValueError(f"{len(loads)} loads and {len(computes)} computes; give one of each for every batch")
    if prefetch_factor < 1:
        raise ValueError(f"prefetch_factor={prefetch_factor}: a worker needs at least 1 batch in flight")
    return schedule(loads, computes, workers, prefetch_factor)


def schedule(
    loads: Sequence[Seconds], computes: Sequence[Seconds], workers: int, prefetch_factor: int
) -> list[SimulatedStep]:
    """The heart of `simulate`, for arguments that are known to be good."""
    in_flight = prefetch_factor * workers
    steps: list[SimulatedStep] = []
    for k, (load, compute) in enumerate(zip(loads, computes, strict=True)):
        asked = steps[k - 1].done if k > 0 else 0.0
        if workers == 0:
            worker, start = MAIN_PROCESS, asked
        else:
            sent = steps[k - in_flight].delivered if k >= in_flight else 0.0
            idle = steps[k - workers].ready if k >= workers else 0.0
            worker, start = k % workers, max(sent, idle)
        ready = start + load
        delivered = max(asked, ready)
        steps.append(SimulatedStep(asked, delivered, delivered + compute, worker, start, ready))
    return steps


def feed(loader: Iterable[Any], compute: Callable[[Any], object]) -> list[Step]:
    """Run `compute` on every batch of `loader` and record the times, in seconds from the moment before `iter(loader)`.

    The first step's wait therefore holds the start of the workers. On a GPU `compute` must end with a
    `synchronize()`, or its time shows up elsewhere.
    """
    start = time.perf_counter()
    steps: list[Step] = []
    asked = 0.0
    for batch in loader:
        delivered = time.perf_counter() - start
        compute(batch)
        done = time.perf_counter() - start
        steps.append(Step(asked, delivered, done))
        asked = done
    return steps


def measured_step_time(steps: Sequence[Step], skip: int = 1) -> float:
    """Mean time from one delivery to the next, from delivery `skip` on: the first, filled or warm, are left out.

    With W workers batches may arrive in bursts of W, so the number of steps left should be a multiple of W.

    Raises:
        ValueError: when fewer than two deliveries are left.
    """
    kept = whole_steps(steps, skip)
    return (kept[-1].delivered - kept[0].delivered) / (len(kept) - 1)


def measured_waiting_share(steps: Sequence[Step], skip: int = 1) -> float:
    """Waiting, as a share of the same time as in `measured_step_time`.

    Raises:
        ValueError: when fewer than two deliveries are left.
    """
    kept = whole_steps(steps, skip)
    return sum(step.wait for step in kept[1:]) / (kept[-1].delivered - kept[0].delivered)


class SlowDataset(Dataset[Int[Tensor, ""]]):
    """A dataset whose item k takes `seconds[k]` to load, and is the number k. Sleeping needs no core.

    One item stands for one batch: use it with `DataLoader(..., batch_size=None)`.

    Args:
        seconds: load time of each item.

    Raises:
        ValueError: for a negative or infinite time.
    """

    def __init__(self, seconds: Sequence[Seconds]) -> None:
        _check_times("seconds", seconds)
        self.seconds = list(seconds)

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, index: int) -> Int[Tensor, ""]:
        time.sleep(self.seconds[index])
        return torch.tensor(index)


class NoisyDataset(Dataset[Float[Tensor, "3"]]):
    """A dataset whose items are random numbers, as an augmentation draws them, in three ways at once.

    Column 0 comes from numpy's global generator, which torch seeds differently in each worker; column 1 from a
    generator that the dataset carries, of which every worker gets a copy in the same state; column 2 from a generator
    made of seed and index, so that it does not matter which worker draws.

    Args:
        size: number of items.
        seed: of columns 1 and 2; for other numbers in the next epoch give another.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Float[Tensor, "3"]:
        own = self.generator.random()
        by_index = np.random.default_rng([self.seed, index]).random()
        return torch.tensor([np.random.random(), own, by_index], dtype=torch.float64)


def whole_steps(steps: Sequence[Step], skip: int) -> Sequence[Step]:
    """The steps from number `skip` on.

    Raises:
        ValueError: when fewer than two are left.
    """
    if skip < 0 or len(steps) - skip < 2:
        raise ValueError(f"skip={skip} of {len(steps)} steps leaves no two deliveries to measure between")
    return steps[skip:]


def refuse_impossible(load: Seconds, compute: Seconds, workers: int = 0) -> None:
    """Raise for numbers that no loader and no model has.

    Raises:
        ValueError: for a negative or infinite time, or a negative number of workers.
    """
    _check_times("load", [load])
    _check_times("compute", [compute])
    _check_workers(workers)


def _check_times(name: str, values: Sequence[Seconds]) -> None:
    for value in values:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: {value} is not a time; give a finite number, 0 or more")


def _check_workers(workers: int) -> None:
    if workers < 0:
        raise ValueError(f"workers={workers}: give 0 (load in the main process) or more")
