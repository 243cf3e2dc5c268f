"""A replica of a serving engine in simulated time: continuous batching with chunked prompts, as Module 7's scheduler.

Between two events every step has the same members and takes the same time, so all of them are made in one go: a
simulation costs a few events a request, whatever the number of its tokens.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from llm_ops.capacity.costs import StepCosts
from llm_ops.capacity.requests import Arrival


@dataclass(eq=False)
class Live:
    """A request inside a replica.

    Attributes:
        arrival: the request.
        number: its place among all requests.
        unread: tokens of its prompt that are not read.
        unwritten: tokens of its answer that are not written.
        first: when its first token came; nan before.
    """

    arrival: Arrival
    number: int
    unread: int
    unwritten: int
    first: float = math.nan


@dataclass(eq=False)
class Replica:
    """One engine.

    Args:
        costs: of its steps.
        max_num_seqs: sequences that a step takes.
        max_num_batched_tokens: tokens that a step takes.

    Attributes:
        running: sequences in steps.
        waiting: that wait for a place.
        until: when the steps that were begun end; infinity where it is idle.
    """

    costs: StepCosts
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 256
    running: list[Live] = field(default_factory=list)
    waiting: deque[Live] = field(default_factory=deque)
    until: float = math.inf
    _begun: float = 0.0
    _step: float = 0.0
    _steps: int = 0
    _reads: dict[Live, int] = field(default_factory=dict)  # tokens of prompts in each of the steps
    _writers: list[Live] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_seqs={self.max_num_seqs} must be at least 1, and "
                f"max_num_batched_tokens={self.max_num_batched_tokens} at least as many"
            )

    @property
    def inside(self) -> int:
        """Requests that are not whole."""
        return len(self.running) + len(self.waiting)

    def take(self, live: Live, now: float) -> None:
        """A request comes. Steps that are under way end first; it can be in the next."""
        self.waiting.append(live)
        if math.isinf(self.until):
            self._begin(now)
        elif self._steps > 1 and len(self.running) < self.max_num_seqs:
            made = max(1, math.ceil((now - self._begun) / self._step - 1e-9))  # the step it comes in is made whole
            self._steps = min(self._steps, made)
            self.until = self._begun + self._steps * self._step

    def advance(self) -> list[Live]:
        """Make the steps that end at `until`, begin the next, and give the requests that became whole."""
        now, ended = self.until, []
        for live, tokens in self._reads.items():
            live.unread -= tokens
            if not live.unread:
                live.first, live.unwritten = now, live.unwritten - 1
        for live in self._writers:
            live.unwritten -= self._steps
        ended = [live for live in self.running if not live.unread and not live.unwritten]
        self.running = [live for live in self.running if live.unread or live.unwritten]
        self._begin(now)
        return ended

    def lose(self) -> list[Live]:
        """It dies: everything inside is given back, as far from done as when it came."""
        lost = [*self.running, *self.waiting]
        self.running, self.waiting, self.until = [], deque(), math.inf
        for live in lost:
            live.unread, live.unwritten, live.first = live.arrival.prompt, live.arrival.new, math.nan
        return lost

    def _begin(self, now: float) -> None:
        """Choose the next steps: those who write first, then prompts in their order, with the tokens that are left."""
        while self.waiting and len(self.running) < self.max_num_seqs:
            self.running.append(self.waiting.popleft())
        if not self.running:
            self.until = math.inf
            return
        self._writers = [live for live in self.running if not live.unread]
        budget = self.max_num_batched_tokens - len(self._writers)
        self._reads = {}
        for live in self.running:
            if live.unread and budget:
                self._reads[live] = min(live.unread, budget)
                budget -= self._reads[live]
        # A prompt changes the next step; without one nothing changes until an answer is whole.
        self._steps = 1 if self._reads else min(live.unwritten for live in self._writers)
        self._begun, self._step = now, self.costs.seconds(len(self._writers), sum(self._reads.values()))
        self.until = now + self._steps * self._step
