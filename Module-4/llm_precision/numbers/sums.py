"""Sums that lose less: Kahan's compensated sum, and what plain sums lose in few bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from llm_precision.numbers.formats import Format, cast

Round = Callable[[Tensor], Tensor]


def _rounding(format: Format) -> Round:
    return lambda value: cast(value, format)


def plain_sum(values: Iterable[float], format: Format, rounding: Round | None = None) -> float:
    """Add one after the other, each partial sum rounded to the format.

    A sum stops growing when a term is at most half of the spacing at it.

    Args:
        values: what to add.
        format: of the sum.
        rounding: another way to round, such as `stochastic_cast`; by default to the nearest.
    """
    to_format = rounding or _rounding(format)
    total = torch.zeros((), dtype=torch.float64)
    for value in values:
        total = to_format(total + value)
    return total.item()


def kahan_sum(values: Iterable[float], format: Format) -> float:
    """Add with a second number beside the sum that holds what the last rounding took away. Kahan 1965.

    Both are of the format; after each addition the loss is (new sum - old sum) - term, exactly, and is given back to
    the next term.
    """
    to_format = _rounding(format)
    total, lost = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for value in values:
        term = to_format(value - lost)
        new = to_format(total + term)
        lost = to_format(to_format(new - total) - term)
        total = new
    return total.item()
