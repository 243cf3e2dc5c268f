"""Real replicas in processes of their own: one is lost under load, a model is replaced under load, a gate says no."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from llm_align.evaluate.intervals import Interval
from llm_ops.gate.verdict import Verdict
from llm_ops.load.stand_in import stand_in
from llm_ops.service.fleet import fleet
from llm_ops.service.haproxy import free_ports, haproxy
from llm_ops.watch.alarms import alarms
from llm_ops.watch.prometheus import firing, prometheus
from llm_serve.server.child import Child, ours

YES = Verdict(True, 0.5, 0.5, Interval(0, 0, 0), "as good")
NO = Verdict(False, 0.5, 0.1, Interval(-0.4, -0.5, -0.3), "the difference is -0.4")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(command of a model, command of another)."""
    place = tmp_path_factory.mktemp("models")
    folders = [stand_in(place / f"m{seed}", 64, 2, seed=seed) for seed in (0, 1)]
    return tuple(ours(str(each), "--served_model_name", "m") for each in folders)


class Load(threading.Thread):
    """Callers for a while, in a thread of their own.

    Attributes:
        texts: of each prompt, what its stream brought.
        errors: of streams that did not end well.
    """

    def __init__(self, url: str, seconds: float, rate: float) -> None:
        super().__init__()
        self.url, self.rate, self.count = url, rate, round(seconds * rate)
        self.texts: dict[str, str] = {}
        self.errors: list[str] = []

    def run(self) -> None:
        asyncio.run(self.all())

    async def all(self) -> None:
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
            await asyncio.gather(*(self.one(client, n) for n in range(self.count)))

    async def one(self, client: httpx.AsyncClient, n: int) -> None:
        await asyncio.sleep(n / self.rate)
        prompt, data = f"one {n} two", "nothing"
        self.texts[prompt] = ""
        async with client.stream("POST", f"{self.url}/v1/completions", json=body(prompt, stream=True)) as reply:
            async for line in reply.aiter_lines():
                data = line.removeprefix("data: ") or data
                if line.startswith("data: {"):
                    event = json.loads(data)
                    self.texts[prompt] += event["choices"][0]["text"] if "choices" in event else ""
        if data != "[DONE]":
            self.errors.append(f"{reply.status_code} {data}")


def body(prompt: str, **more) -> dict:
    return {"model": "m", "prompt": prompt, "max_tokens": 40, "temperature": 0, **more}


def text(url: str, prompt: str) -> str:
    return httpx.post(f"{url}/v1/completions", json=body(prompt), timeout=60).json()["choices"][0]["text"]


def test_a_killed_replica_costs_no_answer_and_a_rollout_none_either(models):
    """The counts of callers and of the balancer agree, and each stream is the text that the model writes alone."""
    with fleet(models[0], 2) as service:
        callers = Load(service.url, 4.0, rate=12)
        callers.start()
        time.sleep(1.5)
        service.kill(service.replicas[0])
        callers.join()
        assert callers.errors == [] and service.balancer.failed == 0 == service.balancer.left
        assert service.balancer.again > 0  # some were inside
        alone = {prompt: text(service.replicas[0].url, prompt) for prompt in callers.texts}
        assert callers.texts == alone and len(alone) == 48
        old = text(service.url, "one two")

        stopped = service.roll_out(models[1], lambda before, after: NO)
        assert not stopped.done and "the difference is -0.4" in stopped.reason and len(service.replicas) == 1
        assert text(service.url, "one two") == old
        broken = service.roll_out(ours("/nowhere/model"), lambda before, after: YES)
        assert not broken.done and "not ready" in broken.reason and text(service.url, "one two") == old

        callers = Load(service.url, 10.0, rate=6)
        callers.start()
        judged = []
        done = service.roll_out(models[1], lambda before, after: judged.append(after) or YES)
        callers.join()
        assert judged == [service.replicas[0].url]
        assert done.done and done.replaced == 1 and callers.errors == []
        assert text(service.url, "one two") != old
        assert service.balancer.taken == service.balancer.answered and len(service.balancer.backends) == 1


@contextmanager
def real_services(models):
    """HAProxy with two replicas and a free place, and Prometheus that reads both; skips where one is missing."""
    if not (shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")) or not shutil.which("prometheus"):
        pytest.skip("haproxy or prometheus is not installed")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # a socket's path is short
        port, _, numbers = free_ports(3)
        replicas = [Child(models[0]) for _ in range(2)]
        for each in replicas:
            stack.callback(each.stop)
        for each in replicas:
            each.wait()
        control = stack.enter_context(haproxy(place, port, 3))
        for slot, each in enumerate(replicas, 1):
            control.put(slot, int(each.url.rsplit(":", 1)[1]))
        wait_until(lambda: control.up(1) and control.up(2))
        rules = alarms(first_seconds=5, window=5, patience=2)
        targets = [each.url.removeprefix("http://") for each in replicas]
        watched = stack.enter_context(prometheus(place, numbers, targets, rules, every=0.5))
        yield f"http://127.0.0.1:{port}", control, replicas, watched, stack


def wait_until(true, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


async def whole_answers(url: str, count: int, rate: float) -> list[int]:
    """Statuses of requests that are answered in one piece."""
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:

        async def one(n: int) -> int:
            await asyncio.sleep(n / rate)
            return (await client.post(f"{url}/v1/completions", json=body(f"one {n}"))).status_code

        return list(await asyncio.gather(*(one(n) for n in range(count))))


@pytest.mark.services
def test_behind_haproxy_nothing_that_was_taken_is_lost_and_the_right_alarm_fires(models):
    with real_services(models) as (url, control, replicas, watched, stack):
        time.sleep(6)
        assert firing(watched) == set()

        found: list[int] = []
        callers = threading.Thread(target=lambda: found.extend(asyncio.run(whole_answers(url, 60, 12.0))))
        callers.start()
        time.sleep(2)
        replicas[0].kill()
        callers.join()
        assert found == [200] * 60
        wait_until(lambda: firing(watched) == {"ReplicaDown"}, 20)

        # A replica with another model takes the free place, the old one ends what it has.
        new = Child(models[1])
        stack.callback(new.stop)
        new.wait()
        old = text(url, "one two")
        streams = Load(url, 6.0, rate=8)
        streams.start()
        time.sleep(1)
        control.put(3, int(new.url.rsplit(":", 1)[1]))
        wait_until(lambda: control.up(3))
        control.state(2, "drain")
        wait_until(lambda: control.inside(2) == 0)
        replicas[1].stop()
        streams.join()
        assert streams.errors == [] and text(url, "one two") != old
        with pytest.raises(RuntimeError, match="haproxy refuses"):
            control.order("set server replicas/r9 state ready")
        numbers = httpx.get(f"http://127.0.0.1:{int(url.rsplit(':', 1)[1]) + 1}/metrics").text
        assert "haproxy_backend_http_responses_total" in numbers
