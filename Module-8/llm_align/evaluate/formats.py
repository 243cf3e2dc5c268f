"""How much a score depends on the wording of the question, and how much of that is chance.

Sclar et al. 2024 (arXiv:2310.11324) found scores that differ by tens of points between formats of one question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class FormatEffect:
    """What formats do to a score.

    Attributes:
        means: score of each format, over all questions.
        spread: best less worst.
        chance_spread: what the spread stays below with the asked confidence when formats make no difference.
        p_value: how probable such a spread is when formats make no difference.
        deviation: standard deviation between formats with the chance of the questions taken out; 0 where less than
            that is seen.
    """

    means: tuple[float, ...]
    spread: float
    chance_spread: float
    p_value: float
    deviation: float


def score_table(
    score: Callable[[Any, str], float], questions: Sequence[Any], formats: Sequence[str]
) -> np.ndarray:  # fmt: skip
    """Scores of each question (rows) in each format (columns).

    Args:
        score: of a question in a format.
        questions: what `score` takes.
        formats: likewise; wordings, separators, orders.
    """
    return np.array([[score(question, each) for each in formats] for question in questions], dtype=float)


def format_effect(table: Any, confidence: float = 0.95, draws: int = 2_000, seed: int = 0) -> FormatEffect:
    """What formats do, from the same questions asked in each.

    Some questions are harder than others, which is no effect of formats. So chance is made by exchanging the formats
    *within* a question: a permutation test in blocks. The deviation is the random-effects estimate of two-way analysis
    of variance without replication, sqrt((MS_format - MS_residual) / questions).

    Args:
        table: scores, questions x formats.
        confidence: of `chance_spread`, from 0 to 1.
        draws: exchanges of all rows.
        seed: of the exchanges.

    Raises:
        ValueError: for a table that is none, or a number out of range.
    """
    scores = np.asarray(table, dtype=float)
    if scores.ndim != 2 or min(scores.shape) < 2 or not np.isfinite(scores).all():
        wrong = f"a table of {scores.shape}"
        raise ValueError(f"{wrong}: give finite scores of two questions at least (rows) in two formats (columns)")
    if not 0 < confidence < 1 or draws < 1:
        raise ValueError(f"confidence={confidence} must be above 0 and below 1, and draws={draws} at least 1")
    questions, formats = scores.shape
    means = scores.mean(axis=0)
    spread = float(np.ptp(means))
    dice = np.random.default_rng(seed)
    by_chance = np.array([np.ptp(dice.permuted(scores, axis=1).mean(axis=0)) for _ in range(draws)])
    as_wide = int((by_chance >= spread - 1e-12).sum())
    rest = scores - means - scores.mean(axis=1, keepdims=True) + scores.mean()
    of_formats = questions * float(means.var(ddof=1))
    of_chance = float((rest**2).sum()) / ((questions - 1) * (formats - 1))
    return FormatEffect(
        tuple(means.tolist()), spread, float(np.quantile(by_chance, confidence)), (as_wide + 1) / (draws + 1),
        float(np.sqrt(max(0.0, of_formats - of_chance) / questions)),
    )  # fmt: skip
