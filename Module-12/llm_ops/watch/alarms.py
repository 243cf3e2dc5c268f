"""Alarms: a signal, what it must not exceed, and for how long.

Beyer et al. 2016, Site Reliability Engineering, chapter 6.

An alarm speaks of what callers feel or will soon feel, and says what to do. What heals itself needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import yaml  # type: ignore[import-untyped]

from llm_ops.watch.scrapes import Scrapes
from llm_ops.watch.signals import Down, Gauge, Quantile, Rate, Share, Signal, duration


@dataclass(frozen=True)
class Alarm:
    """One alarm.

    Args:
        name: in one word.
        signal: what it looks at.
        above: value that must be exceeded.
        seconds: for how long without a break.
        says: what is wrong, for the one who is woken.
        do: what he does first.
    """

    name: str
    signal: Signal
    above: float
    seconds: float
    says: str
    do: str


def alarms(
    first_seconds: float = 2.0, waiting: int = 64, failing: float = 0.01, full: float = 0.95, window: float = 60.0,
    patience: float = 60.0,
) -> list[Alarm]:  # fmt: skip
    """The alarms of `llm-serve` replicas.

    Args:
        first_seconds: to a first token, that 99 of 100 callers shall not exceed.
        waiting: requests that may wait, over all replicas.
        failing: share of requests that may fail on our side.
        full: share of a replica's cache that may be held.
        window: seconds that rates and percentiles look back.
        patience: seconds that a condition must hold.
    """
    failed = Rate("llm_serve_request_refused_total", window, (("status", "5.."),))
    answered = Rate("llm_serve_e2e_request_latency_seconds_count", window)
    first = Quantile("llm_serve_time_to_first_token_seconds", 0.99, window)
    return [
        Alarm("ReplicaDown", Down(), 0, patience / 2, "a replica does not answer", "look at its log, start another"),
        Alarm("FirstTokenSlow", first, first_seconds, patience,
              "one caller in a hundred waits too long to read a word", "add a replica, or take fewer requests"),
        Alarm("QueueLong", Gauge("llm_serve_num_requests_waiting"), waiting, patience,
              "requests come faster than they are answered", "add a replica, or lower --max_waiting"),
        Alarm("Failing", Share(failed, answered), failing, patience,
              "requests fail on our side", "stop the rollout; put the last model back"),
        Alarm("CacheFull", Gauge("llm_serve_kv_cache_usage_perc", "max"), full, patience,
              "a replica has no room for more answers", "raise --num_blocks, or add a replica"),
    ]  # fmt: skip


@dataclass
class Watch:
    """Looks at alarms again and again.

    Args:
        rules: alarms.

    Attributes:
        since: when each condition that holds began to.
        firing: alarms that fire now.
    """

    rules: Sequence[Alarm]
    since: dict[str, float] = field(default_factory=dict)
    firing: set[str] = field(default_factory=set)

    def look(self, scrapes: Scrapes, now: float) -> set[str]:
        """Evaluate all alarms; the names of those that fire."""
        for rule in self.rules:
            if rule.signal.value(scrapes, now) > rule.above:  # a value that is not there is above nothing
                self.since.setdefault(rule.name, now)
            else:
                self.since.pop(rule.name, None)
        names = {rule.name: rule.seconds for rule in self.rules}
        self.firing = {name for name, since in self.since.items() if now - since >= names[name]}
        return set(self.firing)


def prometheus_rules(rules: Sequence[Alarm], every: float = 15.0) -> str:
    """The alarms as a rule file of Prometheus."""
    written = [
        {
            "alert": rule.name, "expr": f"{rule.signal.promql()} > {rule.above:g}", "for": duration(rule.seconds),
            "labels": {"severity": "page"}, "annotations": {"summary": rule.says, "action": rule.do},
        }
        for rule in rules
    ]  # fmt: skip
    groups = {"groups": [{"name": "llm-serve", "interval": duration(every), "rules": written}]}
    return str(yaml.safe_dump(groups, sort_keys=False, width=110))
