"""How noisy gradients are, what batch that asks for, and which learning rates a model bears."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class NoiseScale(NamedTuple):
    """Two unknowns of the gradient, and their ratio.

    Attributes:
        signal: |G|², of the gradient over all data.
        noise: tr(Sigma), the variance of one example's gradient, summed over its entries.
    """

    signal: float
    noise: float

    @property
    def batch(self) -> float:
        """B = tr(Sigma) / |G|²: at this batch size noise and signal are equal. Far below it twice the batch is worth
        nearly twice the steps, far above it nearly nothing. McCandlish et al. 2018, eq. 2.9. Infinite where no signal
        was found."""
        return self.noise / self.signal if self.signal > 0 else math.inf


def noise_scale(small: Iterable[float], large: Iterable[float], small_batch: int, large_batch: int) -> NoiseScale:
    """From squared norms of gradients at two batch sizes: E |G_B|² = |G|² + tr(Sigma) / B, twice. The same, app. A.1.

    Args:
        small, large: squared norms of the mean gradients of independent batches.
        small_batch, large_batch: examples of them.

    Raises:
        ValueError: for sizes that are not in order.
    """
    if not 0 < small_batch < large_batch:
        raise ValueError(f"small_batch={small_batch} must be above 0 and below large_batch={large_batch}")
    a, b = (torch.tensor(list(each), dtype=torch.float64).mean().item() for each in (small, large))
    noise = (a - b) / (1 / small_batch - 1 / large_batch)
    signal = (large_batch * b - small_batch * a) / (large_batch - small_batch)
    return NoiseScale(signal, noise)


class RangeTest(NamedTuple):
    """Losses over a learning rate that grows from step to step.

    Attributes:
        rates: of each step.
        losses: before it, in nats.
        diverged: the rate at which the loss passed the limit, or None.
    """

    rates: list[float]
    losses: list[float]
    diverged: float | None


def range_test(
    step: Callable[[float], Tensor | float], low: float = 1e-5, high: float = 1.0, steps: int = 100, limit: float = 1.5
) -> RangeTest:
    """Train with a rate that grows by the same factor each step, until the loss is `limit` times its smallest so far.

    Smith 2017, section 3.3, on a logarithmic scale. It takes a model that is thrown away afterwards.

    Args:
        step: makes a step at a rate, and gives the loss before it.
        low, high: first and last rate.
        steps: from one to the other.
        limit: of the loss, as a multiple of the smallest so far.

    Raises:
        ValueError: for rates that are not in order, or fewer than two steps.
    """
    if not 0 < low < high or steps < 2:
        raise ValueError(f"low={low} must be above 0 and below high={high}, and steps={steps} 2 or more")
    rates: list[float] = []
    losses: list[float] = []
    for number in range(steps):
        rate = low * (high / low) ** (number / (steps - 1))
        loss = float(step(rate))
        if not math.isfinite(loss) or (losses and loss > limit * min(losses)):
            return RangeTest(rates, losses, rate)
        rates.append(rate)
        losses.append(loss)
    return RangeTest(rates, losses, None)
