"""How sure a score is, and a difference of two scores that answer the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A measured value and the interval that holds the true one with the asked confidence.

    Attributes:
        value: measured.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, number: int, confidence: float = 0.95) -> Interval:
    """A share with Wilson's interval, which is never empty, not even for 0 or all. Wilson 1927.

    It holds the shares p that are no further from the measured one than z standard errors *at p*.

    Args:
        successes: how many were right.
        number: of how many, all different questions.
        confidence: of the interval, from 0 to 1.

    Raises:
        ValueError: for counts that cannot be.
    """
    return win_rate(successes, 0, number - successes, confidence)


def win_rate(wins: int, ties: int, losses: int, confidence: float = 0.95) -> Interval:
    """Share of comparisons that A wins against B, a tie as half a win.

    With share t of ties, a comparison has the variance p (1 - p) - t / 4: a tie is nearer to the middle than a win and
    a loss are. The interval is Wilson's with this variance, and Wilson's own without ties. For t it takes
    ties / (number + z^2), so that the interval is not empty when all are ties.

    Args:
        wins, ties, losses: comparisons of A with B, each on a prompt of its own.
        confidence: of the interval, from 0 to 1.

    Raises:
        ValueError: for counts that cannot be.
    """
    number = wins + ties + losses
    if min(wins, ties, losses) < 0 or number < 1:
        raise ValueError(f"counts of {wins}, {ties} and {losses}: none may be below 0, and at least one must be there")
    z = _quantile(confidence)
    share, tied, a = (wins + ties / 2) / number, ties / (number + z * z), z * z / number
    # (share - p)^2 = a (p (1 - p) - tied / 4), solved for p
    middle = share + a / 2
    root = math.sqrt(max(0.0, middle * middle - (1 + a) * (share * share + a * tied / 4)))
    low, high = (middle - root) / (1 + a), (middle + root) / (1 + a)
    return Interval(share, max(0.0, min(low, share)), min(1.0, max(high, share)))  # rounding may pass 0, 1 or the share


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of after - before over questions, with the interval of its bootstrap. Efron 1979.

    The questions are drawn again, with replacement, each with both of its scores: how hard a question is cancels.

    Args:
        before, after: scores of the same questions, in the same order.
        confidence: of the interval, from 0 to 1.
        draws: of all questions.
        seed: of the draws.

    Raises:
        ValueError: for scores that are no pairs, or fewer than two.
    """
    difference = _pairs(before, after)
    _quantile(confidence)
    places = np.random.default_rng(seed).integers(len(difference), size=(draws, len(difference)))
    low, high = np.quantile(difference[places].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """How probable it is that at least so uneven changes come by chance: McNemar's exact test, two-sided.

    Only questions that changed count. By chance each of them is as likely to become right as to become wrong.

    Args:
        before, after: whether each question was right, in the same order.

    Raises:
        ValueError: for answers that are no pairs, or fewer than two.
    """
    difference = _pairs(before, after)
    if not np.isin(np.unique(difference), (-1, 0, 1)).all():
        raise ValueError("McNemar's test compares right with wrong; give True and False, or take paired_bootstrap")
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    changed = gained + lost
    fewer = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * fewer / 2**changed)


def _pairs(before: Sequence[float], after: Sequence[float]) -> np.ndarray:
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        wrong = f"scores of {first.shape} and {second.shape}"
        raise ValueError(f"{wrong}: give both models' scores of the same questions, two at least")
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        raise ValueError("a score is not finite; mend the function that gave it")
    return second - first


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be above 0 and below 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)
