"""What a step of a serving engine costs, from measurements: the one thing that a simulation has to be told."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a step: fixed + per_sequence x sequences that write + per_prompt_token x tokens of prompts.

    The first term is the weights, which a step reads whoever it serves; the second is a sequence's own cache and
    token; the third is the work of reading. It holds while a step is bound by memory.

    Args:
        fixed: seconds of a step, whatever is in it.
        per_sequence: seconds more for each sequence that writes a token.
        per_prompt_token: seconds more for each token of a prompt.
        beside: seconds of a request outside of the engine: its tokens made, its answer sent.

    Raises:
        ValueError: for a number below 0 or without an end, and for steps that take no time.
    """

    fixed: float
    per_sequence: float
    per_prompt_token: float
    beside: float = 0.0

    def __post_init__(self) -> None:
        values = (self.fixed, self.per_sequence, self.per_prompt_token, self.beside)
        if not all(math.isfinite(each) and each >= 0 for each in values):
            raise ValueError(f"{self}: each must be a number of seconds, 0 or more; measure again on a quiet machine")
        if self.fixed + min(self.per_sequence, self.per_prompt_token) <= 0:
            raise ValueError(f"{self}: a step takes time; give fixed, or both of the others")

    def times(self, factor: float) -> StepCosts:
        """The costs of a machine that takes `factor` times as long for everything."""
        each = (self.fixed, self.per_sequence, self.per_prompt_token, self.beside)
        return StepCosts(*(factor * cost for cost in each))

    def seconds(self, writing: float, prompt_tokens: float) -> float:
        """Seconds of a step with so many sequences that write and so many tokens of prompts."""
        return self.fixed + self.per_sequence * writing + self.per_prompt_token * prompt_tokens


@dataclass(frozen=True)
class Timed:
    """A time that was measured.

    Attributes:
        writing: sequences that wrote in the step.
        prompt_tokens: tokens of prompts in it.
        seconds: that it took.
        outside: whether it was taken by the caller, from sending to a first token: what is beside the engine is in it.
    """

    writing: float
    prompt_tokens: float
    seconds: float
    outside: bool = False


def fit(times: Iterable[Timed]) -> StepCosts:
    """The costs that explain measured times best, each time by its *relative* error and no cost below 0.

    Least squares of (predicted - measured) / measured: a long step would else outweigh all short ones, and the short
    ones are what most answers are made of.

    Args:
        times: several batches and several lengths of prompts.

    Raises:
        ValueError: for times that do not tell the costs apart.
    """
    found = list(times)
    rows = np.array([[1, each.writing, each.prompt_tokens, each.outside] for each in found], dtype=float).reshape(-1, 4)
    seconds = np.array([each.seconds for each in found])
    columns = [0, 1, 2, *([3] if rows[:, 3].any() else [])]
    if np.linalg.matrix_rank(rows[:, columns]) < len(columns):
        raise ValueError("these times do not tell the costs apart; measure several batches and several prompt lengths")
    if not (np.isfinite(seconds).all() and (seconds > 0).all()):
        raise ValueError("a time that was measured must be above 0 seconds")
    found_costs = dict.fromkeys(range(4), 0.0)
    found_costs.update(_nonnegative(rows / seconds[:, None], columns))
    return StepCosts(*found_costs.values())


def _nonnegative(rows: np.ndarray, columns: Sequence[int]) -> dict[int, float]:
    """Least squares of rows @ costs = 1 with no cost below 0: of so few it is cheap to try which ones are 0."""
    best, least = dict.fromkeys(columns, 0.0), math.inf
    for size in range(1, len(columns) + 1):
        for some in itertools.combinations(columns, size):
            answer, *_ = np.linalg.lstsq(rows[:, some], np.ones(len(rows)), rcond=None)
            error = float(((rows[:, some] @ answer - 1) ** 2).sum())
            if (answer >= 0).all() and error < least:
                least, best = error, dict(zip(some, map(float, answer), strict=True))
    return best


def capacity(costs: StepCosts, prompt: Sequence[int], new: Sequence[int], batch: int) -> float:
    """Requests a second that a replica serves when some always wait: the inverse of a request's share of the steps.

    A request of p and n tokens takes p prompt tokens and n - 1 places in steps that write (its first token comes with
    the last of its prompt). With `batch` places that are never empty, a step's fixed cost is shared by all of them.

    Args:
        costs: of a step.
        prompt: tokens of prompts, one number a request.
        new: tokens of answers, likewise.
        batch: sequences that a step takes.

    Raises:
        ValueError: for no request, or no place.
    """
    if not prompt or len(prompt) != len(new) or batch < 1:
        raise ValueError(f"{len(prompt)} prompts, {len(new)} answers and a batch of {batch}: give one answer a prompt")
    reads, writes = sum(prompt) / len(prompt), sum(new) / len(new) - 1
    own = costs.per_prompt_token * reads + costs.per_sequence * writes
    return 1 / (own + costs.fixed * (writes + 1) / batch)
