"""A load whose figures can be counted by hand, against a server that answers at known times."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from llm_serve.bench import Job, Sample, jobs, load, percentile, summary
from llm_serve.cli import main


class Answers(BaseHTTPRequestHandler):
    """Writes as many words as asked; refuses prompts with "no" in them, and breaks off at "half"."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply(200, json.dumps({"data": [{"id": "tiny"}]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if "no" in body["prompt"].split():
            self.reply(429, '{"error": {"message": "full"}}')
            return
        events = [{"choices": [{"text": "word "}]} for _ in range(body["max_tokens"])]
        if "half" in body["prompt"]:
            events[1:] = [{"error": {"message": "the engine failed"}}]
        else:
            events.append({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        self.reply(200, "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n")

    def reply(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    made.asked = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


def test_each_is_sent_at_its_time_and_its_tokens_counted(server):
    url = f"http://127.0.0.1:{server.server_port}"
    work = [Job(0.0, "a", 3), Job(0.2, "b", 1), Job(0.1, "no", 2), Job(0.0, "half", 2)]
    samples = asyncio.run(load(url, "tiny", work))
    assert [len(each.tokens) for each in samples] == [3, 1, 0, 1] and [each.written for each in samples] == [3, 1, 0, 0]
    assert [each.error for each in samples] == ["", "", '429: {"error": {"message": "full"}}', "the engine failed"]
    for each, job in zip(samples, work, strict=True):
        assert job.at <= each.sent < job.at + 2
    assert all(body["model"] == "tiny" and body["stream"] and body["temperature"] == 0 for body in server.asked)
    found = summary(samples)
    assert (found.answered, found.failed) == (2, 2)


def test_figures_by_hand():
    samples = [
        Sample(0.0, [1.0, 1.5, 2.5], 2.5, 3), Sample(1.0, [1.5, 2.0], 3.0, 2), Sample(0.5, error="lost"),
    ]  # fmt: skip
    found = summary(samples)
    assert found.seconds == 3.0 and found.tokens_per_second == pytest.approx(5 / 3)
    assert found.first == (0.5, 1.0) and found.between == (0.5, 1.0) and found.whole == (2.0, 2.5)
    assert math.isnan(summary([Sample(0.0, error="lost")]).first[0])
    assert percentile([3, 1, 2], 0.5) == 2 and percentile(range(1, 101), 0.99) == 99 and percentile([7], 0.01) == 7


def test_arrivals_are_poisson():
    times = [each.at for each in jobs(4_000, 2.0, 10, 10)]
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.5, rel=4 / 4_000**0.5)
    squares = sum((each - mean) ** 2 for each in gaps) / len(gaps)
    assert squares == pytest.approx(0.25, rel=0.2)  # an exponential's deviation is its mean; even gaps have none
    assert {each.at for each in jobs(5, 0, 3, 3)} == {0.0}
    assert jobs(5, 1.0, 3, 3) == jobs(5, 1.0, 3, 3) != jobs(5, 1.0, 3, 3, seed=1)


def test_the_bench_command(server, capsys):
    url = f"http://127.0.0.1:{server.server_port}"
    assert main(["bench", url, "--requests", "6", "--max_tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("6 answered, 0 not") and "time to first token" in out and server.asked[0]["model"] == "tiny"
    for arguments, message in (
        (["http://127.0.0.1:9", "--requests", "1"], "http://127.0.0.1:9 names no model (ConnectError)"),
        ([url, "--requests", "0"], "must be at least 1"),
        ([url, "--rate", "-1"], "--rate 0 or more"),
        (["nonsense"], "nonsense names no model"),
    ):
        assert main(["bench", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert main(["bench", "http://127.0.0.1:9", "--model", "tiny", "--requests", "2"]) == 1
    assert "0 answered, 2 not" in (out := capsys.readouterr().out) and "ConnectError" in out
