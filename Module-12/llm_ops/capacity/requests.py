"""A request on its way through a service, simulated or real, and the figures of many."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from llm_serve.bench import Sample, percentile


@dataclass(frozen=True)
class Arrival:
    """A request that comes: seconds after the start, tokens of its prompt and of its answer."""

    at: float
    prompt: int
    new: int

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.new < 1 or not 0 <= self.at < math.inf:
            raise ValueError(f"{self}: a request comes at 0 s or later and has one token at least of each kind")


@dataclass(frozen=True)
class Served:
    """What became of a request.

    Attributes:
        sent: seconds after the start.
        first: when its first token came; nan where none did.
        ended: when it was whole; nan where it was not.
        tokens: of the answer.
        tries: how often it was begun: 1 unless a replica was lost under it.
        error: why it was not answered; empty where it was.
    """

    sent: float
    first: float
    ended: float
    tokens: int
    tries: int = 1
    error: str = ""


def poisson(count: int, rate: float, prompt: tuple[int, int], new: tuple[int, int], seed: int = 0) -> list[Arrival]:
    """Requests of callers who do not know of each other: pauses drawn from an exponential law (an open loop).

    Args:
        count: how many.
        rate: a second, on average.
        prompt: least and most tokens of a prompt, all lengths alike.
        new: likewise of an answer.
        seed: of the draws.

    Raises:
        ValueError: for a rate of 0 or less.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate={rate} must be above 0")
    dice, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += dice.expovariate(rate)
        found.append(Arrival(now, dice.randint(*prompt), dice.randint(*new)))
    return found


def seen(samples: Sequence[Sample]) -> list[Served]:
    """What `llm_serve.bench.load` measured of a server, in the terms of the simulation."""
    found = []
    for each in samples:
        first = each.tokens[0] if each.tokens else math.nan
        ended = math.nan if each.error else each.ended
        found.append(Served(each.sent, first, ended, each.written, error=each.error))
    return found


@dataclass(frozen=True)
class Figures:
    """Of many requests; waits are seconds, and nan of none.

    Attributes:
        answered, failed: how many.
        first_p50, first_p99: to the first token.
        whole_p50, whole_p99: to the last.
        rate: answered a second, from the first sending to the last end.
        goodput: answered within the limits, a second, likewise.
        inside: requests inside, on average over that time.
    """

    answered: int
    failed: int
    first_p50: float
    first_p99: float
    whole_p50: float
    whole_p99: float
    rate: float
    goodput: float
    inside: float


def figures(served: Sequence[Served], first: float = math.inf, between: float = math.inf) -> Figures:
    """The figures of many requests.

    Goodput counts what callers can use: answers whose first token came within `first` seconds and whose other tokens
    came, on average, within `between` seconds of each other. Zhong et al. 2024, DistServe (arXiv:2401.09670).

    Args:
        served: what became of them.
        first: seconds to a first token that callers bear.
        between: seconds between tokens that they bear.
    """
    good = [each for each in served if not each.error]
    firsts = [each.first - each.sent for each in good if math.isfinite(each.first)]
    whole = [each.ended - each.sent for each in good]
    seconds = max(each.ended for each in good) - min(each.sent for each in served) if good else 0.0
    kept = sum(
        each.first - each.sent <= first and (each.ended - each.first) / max(1, each.tokens - 1) <= between
        for each in good
    )
    rates = (len(good) / seconds, kept / seconds, sum(whole) / seconds) if seconds else (0.0, 0.0, 0.0)
    first_p50, first_p99 = percentile(firsts, 0.5), percentile(firsts, 0.99)
    whole_p50, whole_p99 = percentile(whole, 0.5), percentile(whole, 0.99)
    return Figures(len(good), len(served) - len(good), first_p50, first_p99, whole_p50, whole_p99, *rates)
