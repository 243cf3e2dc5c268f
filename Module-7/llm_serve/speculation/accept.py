"""Which guesses stay: a rule that leaves the law of the answer as it is, whatever was guessed.

Leviathan et al. 2023, algorithm 1 (arXiv:2211.17192); Chen et al. 2023, algorithm 2 (arXiv:2302.01318).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def accept(
    target: Float[Tensor, "guesses_and_one vocab"], draft: Float[Tensor, "guesses vocab"], guesses: Sequence[int],
    generator: torch.Generator | None = None,
) -> tuple[int, int]:  # fmt: skip
    """How many guesses stay, and the token behind them.

    Guess x stays with probability min(1, p(x) / q(x)). The first that does not is replaced by a draw from what p has
    beyond q, max(p - q, 0) divided by its sum. So a place gets x with probability
    min(p(x), q(x)) + (1 - sum of min(p, q)) · max(p(x) - q(x), 0) / sum of max(p - q, 0) = p(x).

    Args:
        target: p, the model's own probabilities at the place of each guess and at the one behind the last; a single 1
            a row where the model is greedy.
        draft: q, that each guess was drawn from; a single 1 a row where it was not drawn.
        guesses: the tokens.
        generator: of the draws.
    """
    for place, guess in enumerate(guesses):
        p, q = target[place], draft[place]
        if float(torch.rand((), generator=generator)) * float(q[guess]) >= float(p[guess]):
            rest = (p - q).clamp(min=0)
            if rest.any():  # p and q may differ by rounding alone: then the guess stays
                return place, int(torch.multinomial(rest / rest.sum(), 1, generator=generator))
    return len(guesses), int(torch.multinomial(target[len(guesses)], 1, generator=generator))


def expected_tokens(acceptance: float, guesses: int) -> float:
    """Tokens that one look of the model gives, (1 - a^(k+1)) / (1 - a): each of k guesses stays with probability a,
    if those before it did, and one token more is always drawn. Leviathan et al. 2023, equation 1."""
    if not 0 <= acceptance <= 1 or guesses < 0:
        raise ValueError(f"acceptance={acceptance} must be from 0 to 1, and guesses={guesses} 0 or more")
    return guesses + 1 if acceptance == 1 else (1 - acceptance ** (guesses + 1)) / (1 - acceptance)


def speedup(acceptance: float, guesses: int, draft_cost: float, look_cost: float = 1.0) -> float:
    """Tokens a second over those without guessing.

    Args:
        acceptance: a, the probability that a guess stays.
        guesses: k, in each round.
        draft_cost: seconds of one guess over those of one step of the model.
        look_cost: seconds of the model's look at k + 1 tokens over those at one; 1 where reading its weights is all
            that a step costs (theorem 3.8 of Leviathan et al. 2023 has it so), more on a machine that computes slowly.
    """
    return expected_tokens(acceptance, guesses) / (guesses * draft_cost + look_cost)


def break_even(guesses: int, draft_cost: float, look_cost: float = 1.0) -> float:
    """The acceptance above which guessing pays; infinite where it never does."""
    low, high = 0.0, 1.0
    if speedup(1.0, guesses, draft_cost, look_cost) <= 1:
        return float("inf")
    for _ in range(60):  # the speedup grows with a
        middle = (low + high) / 2
        low, high = (low, middle) if speedup(middle, guesses, draft_cost, look_cost) > 1 else (middle, high)
    return high
