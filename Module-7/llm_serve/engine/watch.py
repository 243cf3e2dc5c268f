"""What those who wait see of an engine, and what its memory holds: when each token came, and which places are empty."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest.mock import patch

from llm_serve.cache.paged import paged_attention
from llm_serve.engine.engine import Engine, Step
from llm_serve.engine.request import Request


@dataclass
class Watched:
    """Tokens by the request's number, and the second at which the step that wrote each had ended.

    Args:
        tokens: of each request.
        seconds: of each token, on the clock of the engine's log.
        came: when the late request was submitted.
    """

    tokens: dict[int, list[int]] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    came: float = 0.0

    def longest_gap(self, numbers: Iterable[int]) -> float:
        """Seconds of the longest wait between two tokens of some requests."""
        return max(later - now for number in numbers for now, later in pairwise(self.seconds[number]))


def _note(engine: Engine, watched: Watched) -> None:
    for delta in engine.step():
        if delta.token is not None:
            watched.tokens.setdefault(delta.number, []).append(delta.token)
            step = engine.log[-1]
            watched.seconds.setdefault(delta.number, []).append(step.begin + step.seconds)


def watch(engine: Engine, requests: Sequence[Request], late: Request, after: int) -> Watched:
    """Serve requests to their end, and one more that comes after some steps.

    Args:
        engine: with nothing to do.
        requests: of one answer each, which are there from the beginning.
        late: the one that comes later; its number is that of the last.
        after: steps before it comes, at least 1.

    Raises:
        ValueError: for `after` below 1, and for an engine that is at work.
    """
    if after < 1 or engine.unfinished:
        raise ValueError(
            f"after={after} must be at least 1, and the engine without requests ({engine.unfinished} open)"
        )
    watched = Watched()
    for request in requests:
        engine.submit(request)
    for _ in range(after):
        _note(engine, watched)
    watched.came = engine.log[-1].begin + engine.log[-1].seconds
    engine.submit(late)
    while engine.unfinished:
        _note(engine, watched)
    return watched


def under_traffic(engine: Engine, requests: Sequence[Request], dice: random.Random, chance: float = 0.4) -> Watched:
    """Serve requests that come at random steps, in their order.

    Args:
        engine: with nothing to do.
        requests: of one answer each.
        dice: draw how many come before each step.
        chance: that one more comes, above 0.
    """
    watched, waiting = Watched(), list(requests)
    while waiting or engine.unfinished:
        while waiting and dice.random() < chance:
            engine.submit(waiting.pop(0))
        _note(engine, watched)
    return watched


def empty_places(log: Sequence[Step], block_size: int) -> float:
    """Places in the blocks of a running request that hold nothing, on average over requests and steps.

    Args:
        log: of an engine without prefix caching and preemption, from the beginning to the end of all its requests.
        block_size: P.

    Raises:
        ValueError: where no request runs longer than one step.
    """
    last = {number: place for place, step in enumerate(log) for number, *_ in step.tokens}
    held, empty, rows = Counter[int](), 0, 0
    for place, step in enumerate(log):
        held.update({number: count for number, _, count, _ in step.tokens})
        for number in [number for number in held if last[number] == place]:
            del held[number]  # its blocks were given back in this step
        empty += step.blocks * block_size - held.total()
        rows += len(held)
    if not rows:
        raise ValueError("no request of the log runs longer than one step; let them write more tokens")
    return empty / rows


@contextmanager
def attention_seconds() -> Iterator[list[float]]:
    """Within the block: the seconds of each call of attention that an engine on a CPU makes."""
    spent: list[float] = []

    def timed(*given: Any) -> Any:
        begin = time.perf_counter()
        out = paged_attention(*given)
        spent.append(time.perf_counter() - begin)
        return out

    with patch("llm_serve.engine.forward.paged_attention", timed):
        yield spent
