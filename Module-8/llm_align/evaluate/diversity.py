"""How different several answers to one prompt are, how long, and whether they end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Diversity:
    """Several answers to one prompt.

    Attributes:
        distinct: by n, the n-grams that are different over all n-grams of the answers; long answers repeat more, so
            compare at equal lengths. NaN when no answer has n tokens.
        mean_length: tokens, without the end.
        finished: share of answers that end by themselves.
        first_entropy: of the answers' first tokens, in nats, 0 when all begin alike; of k answers at most ln k.
    """

    distinct: dict[int, float]
    mean_length: float
    finished: float
    first_entropy: float


def diversity(
    answers: Sequence[Sequence[int]], stop_ids: Collection[int], orders: Sequence[int] = (1, 2, 3)
) -> Diversity:  # fmt: skip
    """Measure several answers to one prompt, as `generate` gives them.

    Args:
        answers: new tokens of each answer, with the stop token at the end of those that ended.
        stop_ids: tokens that end an answer.
        orders: which n to count n-grams of.

    Raises:
        ValueError: when there is no answer, an answer without a token, or an order below 1.
    """
    if not answers or not all(len(answer) for answer in answers):
        raise ValueError("there is no answer, or one without a token; give each answer with its stop token")
    if min(orders, default=1) < 1:
        raise ValueError(f"orders={tuple(orders)} must be 1 or more")
    texts = [list(answer[:-1] if answer[-1] in stop_ids else answer) for answer in answers]
    first = Counter(answer[0] for answer in answers)  # an end is a first token too
    shares = [count / len(answers) for count in first.values()]
    return Diversity(
        {n: distinct_n(texts, n) for n in orders},
        sum(map(len, texts)) / len(texts),
        sum(answer[-1] in stop_ids for answer in answers) / len(answers),
        sum(-share * math.log(share) for share in shares),
    )


def distinct_n(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams. Li et al. 2016, section 5 (arXiv:1510.03055), counts over the same texts."""
    grams = [tuple(text[start : start + n]) for text in texts for start in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan
