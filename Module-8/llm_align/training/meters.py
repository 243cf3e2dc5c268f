"""Means of what is watched, over all batches of a step and all devices."""

from __future__ import annotations

from typing import Any

import torch


class Meters:
    """Sums and counts under names; a mean is their quotient, whatever the batches' sizes."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, name: str, total: float, count: float) -> None:
        """A sum over so many."""
        kept = self._sums.setdefault(name, [0.0, 0.0])
        kept[0] += total
        kept[1] += count

    def add_mean(self, name: str, values: torch.Tensor) -> None:
        """All numbers of a tensor."""
        self.add(name, float(values.sum()), values.numel())

    def take(self, strategy: Any = None) -> dict[str, float]:
        """The means, and begin anew. With a strategy over all its devices, each of which must call it."""
        names = sorted(self._sums)
        table = torch.tensor([self._sums[name] for name in names], dtype=torch.float64)
        self._sums = {}
        if strategy is not None and names:
            table = strategy.reduce(table, reduce_op="sum").cpu()
        return {
            name: total / count if count else 0.0 for name, (total, count) in zip(names, table.tolist(), strict=True)
        }
