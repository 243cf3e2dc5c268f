"""Many replicas behind a balancer in simulated time: who gets a request, replicas that fail, replicas that are added.

The same replica as for one server, so that what was measured of one speaks for thousands.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from llm_ops.capacity.costs import StepCosts
from llm_ops.capacity.replica import Live, Replica
from llm_ops.capacity.requests import Arrival, Served

CHOICES = ("least", "round_robin", "random", "two")


@dataclass(frozen=True)
class Failures:
    """Replicas die at times without memory and come back.

    Args:
        mean_seconds_between: of one replica.
        seconds_away: until it serves again.
        tries: how often a request is begun before it is given up.
    """

    mean_seconds_between: float
    seconds_away: float
    tries: int = 3

    def __post_init__(self) -> None:
        if self.mean_seconds_between <= 0 or self.seconds_away < 0 or self.tries < 1:
            raise ValueError(f"{self}: times must be above 0, and tries at least 1")


@dataclass(frozen=True)
class Autoscaler:
    """Replicas by the requests inside: as many as hold `target` each.

    Args:
        target: requests inside a replica that are wanted.
        every: seconds between two looks.
        seconds_to_start: until a new replica serves.
        least, most: replicas.
        patience: seconds that fewer must have been enough before one is taken away: a dip is no reason.
    """

    target: float
    every: float
    seconds_to_start: float
    least: int
    most: int
    patience: float = 0.0

    def __post_init__(self) -> None:
        if min(self.target, self.every) <= 0 or not 1 <= self.least <= self.most or self.seconds_to_start < 0:
            raise ValueError(f"{self}: target and every must be above 0, and 1 <= least <= most")


@dataclass
class Run:
    """What a simulation gives.

    Attributes:
        served: what became of each request, in the order of coming.
        replicas: (second, how many serve) at each change.
        paid: seconds of replicas that served, from when each was asked for.
        failures: replicas that died.
    """

    served: list[Served]
    replicas: list[tuple[float, int]] = field(default_factory=list)
    paid: float = 0.0
    failures: int = 0


def simulate(
    arrivals: Sequence[Arrival], costs: StepCosts, replicas: int = 1, max_num_seqs: int = 32,
    max_num_batched_tokens: int = 256, max_waiting: int = 256, choice: str = "least",
    failures: Failures | None = None, autoscaler: Autoscaler | None = None, seed: int = 0,
) -> Run:  # fmt: skip
    """Send requests to replicas and say what becomes of each.

    Args:
        arrivals: in any order.
        costs: of a replica's steps.
        replicas: at the start.
        max_num_seqs, max_num_batched_tokens: of a replica's step.
        max_waiting: requests that may wait in a replica; one more is refused.
        choice: who gets a request: the one with the least inside, each in turn, any, or the better of any two.
        failures: of replicas; none by default.
        autoscaler: adds and takes away replicas; none by default.
        seed: of failures and choices.

    Raises:
        ValueError: for another choice, or no replica.
    """
    if choice not in CHOICES:
        raise ValueError(f"choice={choice!r} is none of {', '.join(CHOICES)}")
    if replicas < 1 or max_waiting < 0:
        raise ValueError(f"replicas={replicas} must be at least 1, and max_waiting={max_waiting} 0 or more")
    make = (costs, max_num_seqs, max_num_batched_tokens)
    return _Cluster(make, max_waiting, choice, failures, autoscaler, random.Random(seed)).run(arrivals, replicas)


@dataclass
class _Cluster:
    make: tuple[StepCosts, int, int]
    max_waiting: int
    choice: str
    failures: Failures | None
    autoscaler: Autoscaler | None
    dice: random.Random
    up: list[Replica] = field(default_factory=list)
    events: list[tuple[float, int, str, object]] = field(default_factory=list)
    order: itertools.count[int] = field(default_factory=itertools.count)  # of events at one time
    turn: int = 0
    orphans: list[Live] = field(default_factory=list)  # that wait while nobody serves
    tries: dict[int, int] = field(default_factory=dict)
    leaving: set[Replica] = field(default_factory=set)  # that take nothing new
    begun: dict[Replica, float] = field(default_factory=dict)  # since when each is paid for
    starting: int = 0
    enough_since: float | None = None  # when fewer replicas began to be enough

    def at(self, when: float, kind: str, what: object = None) -> None:
        heapq.heappush(self.events, (when, next(self.order), kind, what))

    def run(self, arrivals: Sequence[Arrival], replicas: int) -> Run:
        self.out: list[Served | None] = [None] * len(arrivals)
        self.result, self.open = Run([]), len(arrivals)
        for number, arrival in enumerate(arrivals):
            self.at(arrival.at, "comes", Live(arrival, number, arrival.prompt, arrival.new))
        for _ in range(replicas):
            self.add(0.0)
        if self.autoscaler:
            self.at(self.autoscaler.every, "look")
        now = 0.0
        while self.open:
            now, _, kind, what = heapq.heappop(self.events)
            getattr(self, kind)(now, what)
        self.result.paid += sum(now - begun for begun in self.begun.values())
        places = sorted(range(len(arrivals)), key=lambda place: arrivals[place].at)
        self.result.served = [served for place in places if (served := self.out[place]) is not None]
        return self.result

    @property
    def taking(self) -> list[Replica]:
        return [each for each in self.up if each not in self.leaving] if self.leaving else self.up

    def add(self, now: float, what: object = None) -> None:
        """A replica begins to serve."""
        replica = Replica(*self.make)
        self.up.append(replica)
        self.begun.setdefault(replica, now if what is None else float(str(what)))
        self.starting -= what is not None
        self.count(now)
        if self.failures:
            self.at(now + self.dice.expovariate(1 / self.failures.mean_seconds_between), "dies", replica)
        waiting, self.orphans = self.orphans, []
        for live in waiting:
            self.comes(now, live)

    def count(self, now: float) -> None:
        self.result.replicas.append((now, len(self.taking)))

    def comes(self, now: float, what: object) -> None:
        """A request comes, or comes again."""
        assert isinstance(what, Live)
        there = self.taking
        if not there:
            self.orphans.append(what)
            return
        replica = self.pick(there)
        # Not all that wait inside will wait: free places are filled at the next step.
        if len(replica.waiting) - (replica.max_num_seqs - len(replica.running)) >= self.max_waiting:
            self.finish(what, now, "refused: the queue is full")
            return
        before = replica.until
        replica.take(what, now)
        if replica.until != before:
            self.at(replica.until, "steps", (replica, replica.until))

    def pick(self, there: list[Replica]) -> Replica:
        if self.choice == "round_robin":
            self.turn += 1
            return there[self.turn % len(there)]
        if self.choice == "random":
            return self.dice.choice(there)
        some = there if self.choice == "least" else [self.dice.choice(there), self.dice.choice(there)]
        return min(some, key=lambda each: each.inside)

    def steps(self, now: float, what: object) -> None:
        """Steps of a replica end, unless another event has changed when they do."""
        replica, until = cast(tuple[Replica, float], what)
        if replica.until != until:
            return
        for live in replica.advance():
            self.finish(live, now)
        if math.isfinite(replica.until):
            self.at(replica.until, "steps", (replica, replica.until))
        elif replica in self.leaving:
            self.leave(replica, now)

    def finish(self, live: Live, now: float, error: str = "") -> None:
        tries = self.tries.get(live.number, 1)
        whole = math.nan if error else now + self.make[0].beside
        first = math.nan if error else live.first + self.make[0].beside
        self.out[live.number] = Served(live.arrival.at, first, whole, live.arrival.new, tries, error)
        self.open -= 1

    def leave(self, replica: Replica, now: float) -> None:
        self.up.remove(replica)
        self.leaving.discard(replica)
        self.result.paid += now - self.begun.pop(replica)

    def dies(self, now: float, what: object) -> None:
        """A replica is lost; what it had is begun again elsewhere."""
        assert isinstance(what, Replica) and self.failures
        if what not in self.up:
            return  # it was taken away before
        self.result.failures += 1
        stays = what not in self.leaving
        self.leave(what, now)
        self.count(now)
        if stays:
            self.starting += 1
            self.at(now + self.failures.seconds_away, "add", now)
        for live in what.lose():
            self.tries[live.number] = self.tries.get(live.number, 1) + 1
            if self.tries[live.number] > self.failures.tries:
                self.tries[live.number] -= 1
                self.finish(live, now, f"lost: {self.failures.tries} replicas died under it")
            else:
                self.comes(now, live)

    def look(self, now: float, what: object) -> None:
        """The autoscaler looks: more at once, fewer after some patience."""
        scaler = self.autoscaler
        assert scaler
        there = self.taking
        inside = sum(each.inside for each in there) + len(self.orphans)
        wanted = min(scaler.most, max(scaler.least, math.ceil(inside / scaler.target)))
        have = len(there) + self.starting
        for _ in range(wanted - have):
            self.starting += 1
            self.at(now + scaler.seconds_to_start, "add", now)
        if wanted >= have:
            self.enough_since = None
        elif self.enough_since is None:
            self.enough_since = now
        if self.enough_since is not None and now - self.enough_since >= scaler.patience:
            for replica in sorted(there, key=lambda each: each.inside)[: min(have - wanted, len(there) - 1)]:
                self.leaving.add(replica)
                if not replica.inside:
                    self.leave(replica, now)
            self.enough_since = None
            self.count(now)
        self.at(now + scaler.every, "look")
