"""How well a search finds what is known to be right: recall, reciprocal rank, and how sure both are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llm_align.evaluate.intervals import Interval, paired_bootstrap


@dataclass(frozen=True)
class Retrieval:
    """Measures over questions.

    Attributes:
        recall: share of the questions whose answer is among the first k, with the interval of its bootstrap.
        reciprocal_rank: mean of 1 / rank, 0 where the answer was not found among all that were looked at.
        k: of the recall.
        number: of questions.
    """

    recall: Interval
    reciprocal_rank: Interval
    k: int
    number: int

    def __str__(self) -> str:
        return f"recall@{self.k} {self.recall}, MRR {self.reciprocal_rank}, {self.number} questions"


def rank_of(found: Sequence[Hashable], right: Hashable) -> int:
    """The place of the right answer, from 1; 0 where it is not there."""
    return next((place for place, each in enumerate(found, start=1) if each == right), 0)


def hits(ranks: Sequence[int], k: int) -> list[float]:
    """1.0 for each question whose answer is among the first k.

    Raises:
        ValueError: for a k or a rank that cannot be.
    """
    if k < 1 or any(rank < 0 for rank in ranks):
        raise ValueError(f"k={k} must be at least 1, and ranks 0 or more (0: not found)")
    return [float(0 < rank <= k) for rank in ranks]


def mean(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of scores with the 95% interval of its bootstrap. Efron 1979."""
    return paired_bootstrap([0.0] * len(values), values, seed=seed)


def retrieval(ranks: Sequence[int], k: int = 10) -> Retrieval:
    """Recall@k and mean reciprocal rank of ranks as `rank_of` gives them, of two questions at least."""
    return Retrieval(mean(hits(ranks, k)), mean([1 / rank if rank else 0.0 for rank in ranks]), k, len(ranks))


def gain(before: Sequence[int], after: Sequence[int], k: int = 10) -> Interval:
    """Recall@k of `after` less that of `before` on the same questions, with the interval of the paired bootstrap."""
    return paired_bootstrap(hits(before, k), hits(after, k))
