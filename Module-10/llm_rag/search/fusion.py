"""Several rankings as one, by ranks alone: scores of words and of vectors have no common unit."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[T]], k: float = 60.0, weights: Sequence[float] | None = None
) -> list[tuple[T, float]]:
    """Each item with the sum of weight / (k + rank) over the rankings that have it, best first. Cormack et al. 2009.

    Args:
        rankings: items, best first; ranks count from 1.
        k: how little the first ranks stand out.
        weights: of the rankings; 1 for each by default.

    Returns:
        All items; of equal ones first the one that stands first in the first ranking that has either.

    Raises:
        ValueError: for a k below 0, weights that do not fit, or an item that stands twice in a ranking.
    """
    weights = [1.0] * len(rankings) if weights is None else list(weights)
    if not 0 <= k < math.inf:
        raise ValueError(f"k={k} must be 0 or more")
    if len(weights) != len(rankings) or not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"weights={weights} of {len(rankings)} rankings: give each one of 0 or more")
    total: dict[T, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        if len(set(ranking)) < len(ranking):
            raise ValueError("an item stands twice in a ranking; give each once")
        for rank, item in enumerate(ranking, start=1):
            total[item] = total.get(item, 0.0) + weight / (k + rank)
    return sorted(total.items(), key=lambda pair: -pair[1])
