"""What numbers say, and when an alarm fires; with promtool, the same as Prometheus makes of the same samples."""

import json
import math
import shutil
import subprocess

import pytest
import yaml
from llm_ops.watch.alarms import Alarm, Watch, alarms, prometheus_rules
from llm_ops.watch.prometheus import PANELS, check_files, configuration, dashboard
from llm_ops.watch.scrapes import Scrapes
from llm_ops.watch.signals import Down, Gauge, Quantile, Rate, Share, quantile, rate
from llm_serve.server.metrics import Metrics

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="prometheus is not installed")
LE = ("0.1", "0.5", "1.0", "+Inf")


def samples():
    """Counters of two replicas every 5 s for two minutes: one begins again at 0, and one is lost after 80 s."""
    found, counts = [], {}
    for tick in range(25):
        for name in ("a:1", "b:2"):
            if name == "b:2" and tick > 16:
                found.append((5.0 * tick, "up", {"instance": name}, 0.0))
                continue
            found.append((5.0 * tick, "up", {"instance": name}, 1.0))
            if name == "a:1" and tick == 10:
                counts[name] = {}
            of = counts.setdefault(name, {})
            for le in LE:
                more = {"0.1": 0, "0.5": tick % 3, "1.0": tick % 3 + 2, "+Inf": tick % 3 + 3}[le]
                of[le] = of.get(le, 0) + more
                found.append((5.0 * tick, "wait_bucket", {"instance": name, "le": le}, float(of[le])))
            found.append((5.0 * tick, "wait_count", {"instance": name}, float(of["+Inf"])))
            of["wrong"] = of.get("wrong", 0) + (tick > 12)
            found.append((5.0 * tick, "wrong_total", {"instance": name, "status": "503"}, float(of["wrong"])))
            found.append((5.0 * tick, "full", {"instance": name}, 0.1 * (tick % 7)))
    return found


def scraped():
    held = Scrapes()
    for at, metric, labels, value in samples():
        held.put(metric, labels, at, value)
    return held


WRONG = (("status", "50."),)
SIGNALS = {
    "sum": Gauge("full"), "most": Gauge("full", "max"), "down": Down(), "rate": Rate("wait_count", 60),
    "long rate": Rate("wait_count", 100), "short rate": Rate("wait_count", 7.5), "narrow": Rate("wait_count", 1),
    "wrong": Rate("wrong_total", 30, WRONG), "other": Rate("wrong_total", 30, (("status", "400"),)),
    "share": Share(Rate("wrong_total", 30, WRONG), Rate("wait_count", 30)),
    "no share": Share(Rate("wrong_total", 30, (("status", "400"),)), Rate("wait_count", 30)),
    "only": Share(Rate("wrong_total", 30, WRONG), Rate("absent", 30)),
    "of nothing": Share(Rate("absent", 30), Rate("absent", 30)),
    "median": Quantile("wait", 0.5, 30), "p99": Quantile("wait", 0.99, 60), "p10": Quantile("wait", 0.1, 60),
    "nothing": Quantile("absent", 0.5, 30),
}  # fmt: skip


@needs_promtool
def test_each_signal_is_what_prometheus_says(tmp_path):
    """Also where a counter began again, where a replica is gone, and at times between two readings."""
    series: dict[str, dict[float, float]] = {}
    for at, metric, labels, value in samples():
        name = metric + "{" + ",".join(f'{key}="{each}"' for key, each in sorted(labels.items())) + "}"
        series.setdefault(name, {})[at] = value
    given = [
        {"series": name, "values": " ".join(str(values.get(5.0 * tick, "_")) for tick in range(25))}
        for name, values in series.items()
    ]  # fmt: skip
    asked, here, seen = [], scraped(), 0
    for signal in SIGNALS.values():
        for now in (20.0, 52.0, 63.0, 100.0, 118.0):
            value = signal.value(here, now)
            wanted = f"abs(({signal.promql()}) - ({value!r})) < bool 1e-9"
            one = [{"labels": "{}", "value": 1}]
            if math.isnan(value):
                wanted = f"count(({signal.promql()}) == ({signal.promql()})) or vector(0)"
                one = [{"labels": "{}", "value": 0}]
            seen += not math.isnan(value)
            asked.append({"expr": wanted, "eval_time": f"{round(now)}s", "exp_samples": one})
    file = tmp_path / "test.yml"
    tests = [{"interval": "5s", "input_series": given, "promql_expr_test": asked}]
    file.write_text(yaml.safe_dump({"evaluation_interval": "5s", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    assert seen > 50


def test_a_rate_by_hand():
    assert rate([(0, 0), (10, 20)], 0, 10) == 2
    assert rate([(0, 10), (5, 20), (10, 5)], 0, 10) == pytest.approx(1.5)  # it began again at 0: 10 more, then 5
    assert rate([(2, 10), (4, 12), (6, 14), (8, 16)], 0, 10) == 1  # carried on to both edges
    assert rate([(4, 1), (6, 3)], 0, 10) == pytest.approx(2 * (2 + 1 + 1) / 2 / 10)  # never below 0: one second back
    assert math.isnan(rate([(1, 1)], 0, 10))


def test_a_percentile_of_buckets_by_hand():
    buckets = [(1.0, 10.0), (2.0, 30.0), (math.inf, 40.0)]
    assert quantile(buckets, 0.5) == pytest.approx(1.5)  # the 20th of 40: half way through the second bucket
    assert quantile(buckets, 0.99) == 2.0  # all that is known: it lies beyond
    assert quantile(buckets, 0.125) == 0.5
    assert math.isnan(quantile([(1.0, 0.0), (math.inf, 0.0)], 0.5)) and math.isnan(quantile([(1.0, 3.0)], 0.5))


def test_an_alarm_waits_and_forgets():
    rule, held = Alarm("Full", Gauge("full", "max"), 0.9, 10, "full", "more room"), Scrapes()
    watch, fired = Watch([rule]), []
    for now, value in enumerate([0.5, 0.95, 0.95, 0.5, *[0.95] * 13, 0.2]):
        held.put("full", {"instance": "a"}, 5.0 * now, value)
        fired.append(watch.look(held, 5.0 * now) == {"Full"})
    assert fired == [False] * 6 + [True] * 11 + [False]  # three looks in a row above it, after the break


def test_what_is_not_there_is_no_alarm_and_a_replica_that_is_not_is_one():
    held, watch = Scrapes(), Watch(alarms(patience=10))
    for now in range(0, 60, 5):
        held.add(now, "a:1", "")
        assert watch.look(held, now) == set()
    for now in range(60, 100, 5):
        held.add(now, "a:1", None)
        watch.look(held, now)
    assert watch.firing == {"ReplicaDown"}


def test_each_alarm_fires_for_its_fault_and_no_other():
    """From a server's own counters: a calm one, and one for each alarm."""
    faults = {
        "calm": lambda m, tick: (m.first.observe(0.1), m.whole.observe(1.0)),
        "FirstTokenSlow": lambda m, tick: (m.first.observe(6.0), m.whole.observe(9.0)),
        "QueueLong": lambda m, tick: (m.waiting.set(90), m.first.observe(0.1), m.whole.observe(1.0)),
        "Failing": lambda m, tick: m.refused.labels(503).inc(),  # nothing is answered any more
        "CacheFull": lambda m, tick: (m.cache.set(0.99), m.first.observe(0.1), m.whole.observe(1.0)),
    }
    for name, plant in faults.items():
        metrics, held, watch = Metrics(), Scrapes(), Watch(alarms(window=30, patience=20))
        for tick in range(20):
            plant(metrics, tick)
            held.add(5.0 * tick, "a:1", metrics.text().decode())
            watch.look(held, 5.0 * tick)
        assert watch.firing == ({name} - {"calm"}), name


def names():
    """Every series that a server of Module 7 shows."""
    metrics = Metrics()
    metrics.refused.labels(503).inc()
    metrics.ended.labels("stop").inc()
    held = Scrapes()
    held.add(0.0, "a:1", metrics.text().decode())
    return set(held.series)


def test_alarms_and_panels_speak_of_what_servers_show():
    import re

    for text in [rule.signal.promql() for rule in alarms()] + [signal.promql() for _, _, signal in PANELS]:
        assert set(re.findall(r"llm_serve_\w+|(?<=\()up\b", text)) <= names(), text


def test_the_dashboard_shows_each_panel_once():
    whole = json.loads(dashboard())
    assert [each["title"] for each in whole["panels"]] == [name for name, _, _ in PANELS]
    places = [tuple(sorted(each["gridPos"].items())) for each in whole["panels"]]
    assert len(set(places)) == len(places) and len({each["id"] for each in whole["panels"]}) == len(places)
    assert whole["__inputs"][0]["name"] in whole["panels"][0]["datasource"]["uid"]


@needs_promtool
def test_promtool_takes_the_files(tmp_path):
    check_files(tmp_path, ["127.0.0.1:8000", "127.0.0.1:8001"], alarms(), every=0.5)


def test_the_files_say_what_was_asked():
    rules = yaml.safe_load(prometheus_rules(alarms(first_seconds=1.5, patience=0.5)))["groups"][0]["rules"]
    slow = next(each for each in rules if each["alert"] == "FirstTokenSlow")
    assert slow["expr"].endswith("> 1.5") and slow["for"] == "500ms"
    written = yaml.safe_load(configuration(["a:1"], __import__("pathlib").Path("r.yml"), 15))
    assert written["global"]["scrape_interval"] == "15s" and written["scrape_configs"][0]["static_configs"]
