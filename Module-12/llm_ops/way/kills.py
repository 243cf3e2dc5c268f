"""What a kill costs work that is done in pieces, each of which is done anew when it was not finished."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def lost_by_a_kill(pieces: Sequence[float]) -> float:
    """Seconds of work that one kill takes away on average, when it comes at any moment alike: sum p^2 / (2 sum p).

    A moment is in a piece of p seconds with probability p / sum p, and then half of the piece is lost.

    Args:
        pieces: seconds of work from one place that it can go on from to the next.

    Raises:
        ValueError: for no work.
    """
    if not pieces or min(pieces) < 0 or sum(pieces) <= 0:
        raise ValueError("give the seconds of some pieces of work, none below 0")
    return sum(piece**2 for piece in pieces) / (2 * sum(pieces))


def seconds_to_finish(pieces: Sequence[float], rate: float) -> float:
    """Seconds until all pieces are done, on average, when kills come at a rate and cost nothing but the work lost.

    Kills that do not know of each other (a Poisson process): a piece of p seconds takes (exp(rate p) - 1) / rate.

    Args:
        pieces: seconds of work from one place that it can go on from to the next.
        rate: kills a second, above 0.

    Raises:
        ValueError: for a rate of 0 or less, where the answer is sum(pieces).
    """
    if not rate > 0:
        raise ValueError(f"rate={rate} must be above 0; without kills the pieces take their sum")
    return sum(math.expm1(rate * piece) / rate for piece in pieces)


def finished_after(pieces: Sequence[float], rate: float, dice: random.Random) -> float:
    """The same, drawn once instead of on average."""
    now = 0.0
    for piece in pieces:
        while (until := dice.expovariate(rate)) < piece:
            now += until
        now += piece
    return now
