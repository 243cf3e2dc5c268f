"""What a million tokens cost, from what was measured."""

from __future__ import annotations

import math


def dollars_per_million(tokens_per_second: float, dollars_per_hour: float, used: float = 1.0) -> float:
    """Dollars of a million written tokens.

    Args:
        tokens_per_second: that the machine writes when some requests always wait.
        dollars_per_hour: of the machine.
        used: share of that rate at which it is used, from 0 to 1: a service that keeps its waits short is never full,
            and its idle hours are paid for too.

    Raises:
        ValueError: for a number out of range.
    """
    if not 0 < tokens_per_second < math.inf or not 0 <= dollars_per_hour < math.inf or not 0 < used <= 1:
        raise ValueError(
            f"{tokens_per_second} tokens/s, {dollars_per_hour} dollars an hour, {used} used: "
            "the first must be above 0, the second 0 or more, the third above 0 and at most 1"
        )
    return dollars_per_hour / 3600 / (tokens_per_second * used) * 1e6
