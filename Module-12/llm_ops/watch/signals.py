"""What numbers say: each signal is a value of now, and the same in Prometheus' language.

The two are held to each other in the tests: promtool evaluates the text on the same samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from llm_ops.watch.scrapes import Labels, Scrapes

STALE = 300.0  # seconds after which a sample is no longer the value of now, as in Prometheus


class Signal(Protocol):
    """A number that an alarm can look at."""

    def value(self, scrapes: Scrapes, now: float) -> float:
        """The value of now; nan where there is none."""

    def promql(self) -> str:
        """The same for Prometheus."""


def duration(seconds: float) -> str:
    """A length of time in Prometheus' words."""
    return f"{round(seconds)}s" if seconds == round(seconds) else f"{round(1000 * seconds)}ms"


def _matcher(labels: Labels) -> str:
    return "{" + ",".join(f'{name}=~"{value}"' for name, value in labels) + "}" if labels else ""


@dataclass(frozen=True)
class Gauge:
    """The sum, or the largest, of a gauge over all replicas.

    Args:
        metric: its name.
        combine: "sum" or "max".
    """

    metric: str
    combine: str = "sum"

    def value(self, scrapes: Scrapes, now: float) -> float:
        last = [samples[-1][1] for samples in scrapes.window(self.metric, now - STALE, now).values()]
        return (sum(last) if self.combine == "sum" else max(last)) if last else math.nan

    def promql(self) -> str:
        return f"{self.combine}({self.metric})"


@dataclass(frozen=True)
class Down:
    """Replicas that do not answer."""

    def value(self, scrapes: Scrapes, now: float) -> float:
        last = [samples[-1][1] for samples in scrapes.window("up", now - STALE, now).values()]
        return float(last.count(0.0)) if last else math.nan

    def promql(self) -> str:
        return "count(up) - sum(up)"


@dataclass(frozen=True)
class Rate:
    """How much a counter grows a second, over all replicas.

    Args:
        metric: a counter's name.
        seconds: the window.
        labels: of the series that count, each a regular expression for the whole value.
    """

    metric: str
    seconds: float
    labels: Labels = ()

    def value(self, scrapes: Scrapes, now: float) -> float:
        window = scrapes.window(self.metric, now - self.seconds, now, **dict(self.labels))
        rates = [rate(samples, now - self.seconds, now) for samples in window.values()]
        there = [each for each in rates if not math.isnan(each)]
        return sum(there) if there else math.nan

    def promql(self) -> str:
        return f"sum(rate({self.metric}{_matcher(self.labels)}[{duration(self.seconds)}]))"


@dataclass(frozen=True)
class Share:
    """What one rate is of itself and another; a rate that is not there counts as 0, and of nothing there is no share.

    Not one over the other: a service that fails everything answers nothing, and a failure over 0 answers is no number.
    """

    part: Rate
    rest: Rate

    def value(self, scrapes: Scrapes, now: float) -> float:
        part, rest = (each.value(scrapes, now) for each in (self.part, self.rest))
        part, rest = (0.0 if math.isnan(each) else each for each in (part, rest))
        return part / (part + rest) if part + rest > 0 else math.nan

    def promql(self) -> str:
        part, rest = (f"({each.promql()} or vector(0))" for each in (self.part, self.rest))
        return f"{part} / ({part} + {rest} > 0)"


@dataclass(frozen=True)
class Quantile:
    """A percentile of a histogram, over all replicas.

    Args:
        metric: its name, without `_bucket`.
        share: 0.99 for the 99th percentile.
        seconds: the window.
    """

    metric: str
    share: float
    seconds: float

    def value(self, scrapes: Scrapes, now: float) -> float:
        rates: dict[float, float] = {}
        window = scrapes.window(f"{self.metric}_bucket", now - self.seconds, now)
        for key, samples in window.items():
            edge, grown = float(dict(key)["le"]), rate(samples, now - self.seconds, now)
            if not math.isnan(grown):
                rates[edge] = rates.get(edge, 0.0) + grown
        return quantile(sorted(rates.items()), self.share)

    def promql(self) -> str:
        rates = f"sum by (le) (rate({self.metric}_bucket[{duration(self.seconds)}]))"
        return f"histogram_quantile({self.share:g}, {rates})"


def rate(samples: list[tuple[float, float]], since: float, until: float) -> float:
    """How much a counter grew a second in a window, as Prometheus' `rate` has it; nan of fewer than two samples.

    A counter that falls began again at 0: what it lost is added. The growth between the first and the last sample is
    carried on to the window's edges: to an edge nearer than 1.1 average pauses all the way, to a farther one by half a
    pause, and never to where the counter would be below 0.

    Args:
        samples: (second, value), in order, all in the window.
        since, until: the window's edges.
    """
    if len(samples) < 2:
        return math.nan
    values = [value for _, value in samples]
    grown = values[-1] - values[0] + sum(a for a, b in pairwise(values) if b < a)
    first, last = samples[0][0], samples[-1][0]
    covered, pause = last - first, (last - first) / (len(samples) - 1)
    before, after = first - since, until - last
    if grown > 0 and values[0] >= 0:
        before = min(before, covered * values[0] / grown)
    reached = covered
    for gap in (before, after):
        reached += gap if gap < 1.1 * pause else pause / 2
    return grown * reached / covered / (until - since)


def quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """A percentile of cumulative buckets, as Prometheus' `histogram_quantile`; nan of an empty histogram.

    Within a bucket the values are taken as spread evenly; beyond the last finite edge nothing is known, and that edge
    is given.

    Args:
        buckets: (upper edge, how many are not above it), by edge, the last one infinite.
        share: from 0 to 1.
    """
    if len(buckets) < 2 or not math.isinf(buckets[-1][0]) or buckets[-1][1] <= 0:
        return math.nan
    rank = share * buckets[-1][1]
    place = next(i for i, (_, count) in enumerate(buckets) if count >= rank)
    if place == len(buckets) - 1:
        return buckets[-2][0]
    edge, count = buckets[place]
    low, under = buckets[place - 1] if place else (0.0, 0.0)
    if not place and edge <= 0:
        return edge
    return low + (edge - low) * (rank - under) / (count - under) if count > under else edge
