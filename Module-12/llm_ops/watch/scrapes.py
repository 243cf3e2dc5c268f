"""Pages of numbers, read again and again: what Prometheus keeps, in a list."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]  # sorted; the replica's address is one of them, "instance"


@dataclass
class Scrapes:
    """Samples of many series.

    Attributes:
        series: of each metric, of each set of labels: (second, value), in order.
    """

    series: dict[str, dict[Labels, list[tuple[float, float]]]] = field(default_factory=dict)

    def add(self, now: float, instance: str, page: str | None) -> None:
        """A page that was read, or None where nobody answered; `up` says which of the two.

        Args:
            now: seconds; never earlier than the last.
            instance: whose page.
            page: in Prometheus' form.
        """
        self.put("up", {"instance": instance}, now, float(page is not None))
        for family in text_string_to_metric_families(page or ""):
            for sample in family.samples:
                self.put(sample.name, {**sample.labels, "instance": instance}, now, sample.value)

    def put(self, metric: str, labels: Mapping[str, str], now: float, value: float) -> None:
        """One sample."""
        of_metric = self.series.setdefault(metric, {})
        of_metric.setdefault(tuple(sorted(labels.items())), []).append((now, value))

    def read(self, now: float, *urls: str, seconds: float = 2.0) -> None:
        """Read `/metrics` of servers.

        Args:
            now: the second that is noted.
            urls: of servers.
            seconds: that one has to answer.
        """
        for url in urls:
            try:
                reply = httpx.get(f"{url}/metrics", timeout=seconds)
                page = reply.text if reply.status_code == 200 else None
            except httpx.HTTPError:
                page = None
            self.add(now, url, page)

    def window(self, metric: str, since: float, until: float, **labels: str) -> dict[Labels, list[tuple[float, float]]]:
        """The samples of a metric from one second to another, both included, of series whose labels match in whole."""
        found = {
            key: [(at, value) for at, value in samples if since <= at <= until]
            for key, samples in self.series.get(metric, {}).items()
            if all(re.fullmatch(wanted, dict(key).get(name, "")) for name, wanted in labels.items())
        }
        return {key: samples for key, samples in found.items() if samples}
