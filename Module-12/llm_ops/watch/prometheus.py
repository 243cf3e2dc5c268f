"""Prometheus beside a service: its configuration, a server of it, what fires; and a dashboard for Grafana."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml  # type: ignore[import-untyped]

from llm_ops.watch.alarms import Alarm, prometheus_rules
from llm_ops.watch.signals import Gauge, Quantile, Rate, Signal, duration

MISSING = "prometheus is not installed; `apt-get install prometheus` brings it"

PANELS: tuple[tuple[str, str, Signal], ...] = (
    ("Tokens written", "tokens/s", Rate("llm_serve_generation_tokens_total", 60)),
    ("Requests answered", "reqps", Rate("llm_serve_e2e_request_latency_seconds_count", 60)),
    ("First token, 99 of 100 within", "s", Quantile("llm_serve_time_to_first_token_seconds", 0.99, 60)),
    ("Token to token, 99 of 100 within", "s", Quantile("llm_serve_time_per_output_token_seconds", 0.99, 60)),
    ("Requests that wait", "short", Gauge("llm_serve_num_requests_waiting")),
    ("Fullest cache", "percentunit", Gauge("llm_serve_kv_cache_usage_perc", "max")),
    ("Answers begun again for want of room", "cps", Rate("llm_serve_num_preemptions_total", 60)),
    ("Requests refused", "reqps", Rate("llm_serve_request_refused_total", 60)),
)


def configuration(targets: Sequence[str], rules: Path | str, every: float = 15.0) -> str:
    """What Prometheus reads, and how often.

    Args:
        targets: HOST:PORT of replicas.
        rules: the file of alarms.
        every: seconds between two readings.
    """
    written = {
        "global": {"scrape_interval": duration(every), "evaluation_interval": duration(every)},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "llm-serve", "static_configs": [{"targets": list(targets)}]}],
    }
    return str(yaml.safe_dump(written, sort_keys=False))


def check_files(folder: Path, targets: Sequence[str], rules: Sequence[Alarm], every: float = 15.0) -> Path:
    """Write configuration and alarms into a folder, and let promtool check both.

    Raises:
        RuntimeError: where it is not installed or refuses one, with its words.
    """
    tool = shutil.which("promtool")
    if tool is None:
        raise RuntimeError(MISSING)
    alarms, file = folder / "alarms.yml", folder / "prometheus.yml"
    alarms.write_text(prometheus_rules(rules, every), encoding="utf-8")
    file.write_text(configuration(targets, alarms, every), encoding="utf-8")
    checked = subprocess.run([tool, "check", "config", str(file)], capture_output=True, text=True)
    if checked.returncode:
        raise RuntimeError(f"promtool refuses {file}: {(checked.stderr or checked.stdout).strip()[-300:]}")
    return file


@contextmanager
def prometheus(
    folder: Path, port: int, targets: Sequence[str], rules: Sequence[Alarm], every: float = 15.0
) -> Iterator[str]:
    """Run Prometheus on 127.0.0.1 with its files in a folder; its address.

    Raises:
        RuntimeError: where it is not installed, refuses a file, or does not start.
    """
    file, program = check_files(folder, targets, rules, every), shutil.which("prometheus")
    if program is None:
        raise RuntimeError(MISSING)
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
               f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=1d"]  # fmt: skip
    process, url = (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        f"http://127.0.0.1:{port}",
    )
    try:
        until = time.monotonic() + 30
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"prometheus did not start; run {' '.join(command)} to see why")
            try:
                if httpx.get(f"{url}/-/ready", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def firing(url: str) -> set[str]:
    """Names of the alarms that fire in a running Prometheus."""
    found: list[dict[str, Any]] = httpx.get(f"{url}/api/v1/alerts", timeout=5).json()["data"]["alerts"]
    return {each["labels"]["alertname"] for each in found if each["state"] == "firing"}


def dashboard(title: str = "llm-serve") -> str:
    """A dashboard that Grafana imports (Dashboards, New, Import); the data source is asked for then."""
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    panels = [
        {
            "id": number + 1, "type": "timeseries", "title": name, "datasource": source,
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [{"refId": "A", "expr": signal.promql(), "datasource": source}],
        }
        for number, (name, unit, signal) in enumerate(PANELS)
    ]  # fmt: skip
    ask = {"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus",
           "pluginName": "Prometheus"}  # fmt: skip
    whole = {"__inputs": [ask], "title": title, "uid": "llm-serve", "schemaVersion": 39, "refresh": "10s",
             "time": {"from": "now-30m", "to": "now"}, "panels": panels}  # fmt: skip
    return json.dumps(whole, indent=2) + "\n"
