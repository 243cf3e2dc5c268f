"""Sums that lose less: Kahan's compensated sum, beside what a plain sum in few bits becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from llm_precision.numbers.formats import Format, cast


def plain_sum(values: Iterable[float], format: Format, rounding: Callable[[Tensor, Format], Tensor] = cast) -> float:
    """Add one after the other, each partial sum rounded to the format.

    A sum stops growing when a term is at most half of the spacing at it.

    Args:
        values: what to add.
        format: of the sum.
        rounding: `cast`, to the nearest, or `stochastic_cast`.
    """
    total = torch.zeros((), dtype=torch.float64)
    for value in values:
        total = rounding(total + value, format)
    return total.item()


def kahan_sum(values: Iterable[float], format: Format) -> float:
    """Add with a second number beside the sum that holds what the last rounding took away. Kahan 1965.

    Both are of the format; after each addition the loss is (new sum - old sum) - term, exactly, and is given back to
    the next term.
    """
    total, lost = torch.zeros(2, dtype=torch.float64)
    for value in values:
        term = cast(value - lost, format)
        new = cast(total + term, format)
        lost = cast(cast(new - total, format) - term, format)
        total = new
    return total.item()
