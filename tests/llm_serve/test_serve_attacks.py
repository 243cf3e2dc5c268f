"""Callers who mean harm, and accidents: one request's trouble stays its own, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import torch
from llm_core.generate import Sampling
from llm_serve import Engine, EngineConfig, Request
from llm_serve.bench import Job, Sample, load, summary
from llm_serve.cache.sizes import paged_waste
from llm_serve.cli import main
from llm_serve.engine.request import Finish
from llm_serve.errors import RequestError
from llm_serve.server.app import application
from llm_serve.server.settings import ServerConfig
from llm_serve.speculation.decode import speculate
from llm_serve.speculation.guess import DraftModel
from llm_serve.structured.grammar import json_schema, regex
from test_server import CHAT, Running, parts, serve
from tiny_models import VOCAB, pair


@pytest.fixture
def server() -> Iterator[Running]:
    model, tokenizer = parts()
    yield from serve(Engine(model, tokenizer, EngineConfig(num_blocks=400)), ServerConfig("tiny", request_seconds=3.0))


def post(server: Running, seconds: float = 20, **fields) -> httpx.Response:
    body = json.dumps({**CHAT, **fields}).encode()
    return httpx.post(f"{server.url}/v1/chat/completions", content=body, timeout=seconds)


def schema(found: dict) -> dict:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": found}}}


REFUSED = {
    "the last seed and two answers": ({"seed": 2**64 - 1, "n": 2}, "seed=18446744073709551615 and n=2"),
    "a priority over everybody's for ever": ({"priority": -(10**9)}, "greater than or equal to -100"),
    "a schema that is only itself": (schema({"$ref": "#"}), "the JSON schema cannot be followed: NoExtensionBias"),
    "a schema that takes minutes": (schema({"type": "integer", "multipleOf": 123_456_789}), "multipleOf"),
    "a number beyond all floats": (schema({"type": "integer", "multipleOf": 10**400 + 1}), "number out of range"),
    "two numbers that take minutes together": (
        schema({"allOf": [{"type": "integer", "multipleOf": 9_973}, {"multipleOf": 99.67}]}), "multipleOf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_end_the_engine_is_refused(server, name):
    fields, message = REFUSED[name]
    reply = post(server, **fields)
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]
    assert server.worker.alive and post(server).status_code == 200


def test_multiples_that_can_be_followed():
    tokenizer = parts()[1]
    for step in (0.01, 97, 100_000, 2.5, 8_192):
        assert json_schema(tokenizer, {"type": "number", "multipleOf": step}, 300)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_penalty_that_leaves_no_token_ends_its_answer_alone(temperature):
    """The one token that the grammar allows has a negative logit, and the penalty makes it -inf."""
    model, tokenizer = parts()
    grammar = regex(tokenizer, "(u ){20}", model.config.vocab_size)
    asked = Sampling(max_new_tokens=30, temperature=temperature, repetition_penalty=1e300)
    bad, good = Engine(model, tokenizer).run([
        Request((1, 2, 3), asked, constraint=grammar), Request((1, 2, 3), Sampling(max_new_tokens=5)),
    ])  # fmt: skip
    assert bad[0].finish is Finish.ERROR and "u u".startswith(bad[0].text.strip()[:3])
    assert good[0].finish is Finish.LENGTH


def test_a_grammar_that_fails_midway_ends_its_answer_alone(capfd):
    """700 names that may come next are more than llguidance follows, which shows behind the first brace."""
    model, tokenizer = parts()
    names = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(700)}}
    grammar = json_schema(tokenizer, names, model.config.vocab_size)
    bad, good = Engine(model, tokenizer).run([
        Request((1,), Sampling(max_new_tokens=30, temperature=0), constraint=grammar),
        Request((1,), Sampling(max_new_tokens=5)),
    ])  # fmt: skip
    assert bad[0].finish is Finish.ERROR and bad[0].text.startswith("{") and good[0].finish is Finish.LENGTH
    assert "Parser Error" not in capfd.readouterr().err  # no log tells what was asked


def test_tokens_that_cannot_be_suppressed():
    engine = Engine(pair()[1])
    for token in (VOCAB, -1):
        with pytest.raises(RequestError, match=f"suppress_tokens has token {token}"):
            engine.submit(Request((1,), Sampling(suppress_tokens=(token,))))
    every = Sampling(suppress_tokens=tuple(range(VOCAB)), max_new_tokens=3)
    found = engine.run([Request((1,), every), Request((1,), replace(every, suppress_tokens=()))])
    assert found[0][0].finish is Finish.ERROR and len(found[1][0].tokens) == 3


def test_a_failure_is_told_to_those_who_asked_during_its_step(server, monkeypatch):
    gate = threading.Event()

    def fail():
        gate.wait(10)
        raise RuntimeError("broken")

    monkeypatch.setattr(server.engine, "step", fail)
    with ThreadPoolExecutor(3) as threads:
        waiting = []
        for _ in range(3):
            waiting.append(threads.submit(post, server))
            time.sleep(0.2)
        gate.set()
        assert [each.result().status_code for each in waiting] == [503] * 3


def test_a_panic_of_a_library_is_a_failure_too(server, monkeypatch):
    class PanicException(BaseException):
        """As pyo3's."""

    def fail():
        raise PanicException

    monkeypatch.setattr(server.engine, "step", fail)
    assert "the engine failed: PanicException" in post(server).text


def slow_steps(server: Running, monkeypatch, seconds: float) -> None:
    step = server.engine.step

    def slow():
        time.sleep(seconds)
        return step()

    monkeypatch.setattr(server.engine, "step", slow)


def test_who_leaves_before_the_first_event_takes_his_request_with_him(server, monkeypatch):
    slow_steps(server, monkeypatch, 0.5)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(post, server, max_tokens=2)
        time.sleep(0.2)  # the engine is at work, and looks at nobody
        with pytest.raises(httpx.ReadTimeout):
            post(server, 0.1, stream=True, max_tokens=4_000)
        assert other.result().status_code == 200
    time.sleep(1.5)
    assert server.engine.unfinished == 0


def test_numbers_of_what_is_held_after_a_caller_left(server):
    with httpx.stream("POST", f"{server.url}/v1/chat/completions",
                      json={**CHAT, "max_tokens": 4_000, "stream": True}, timeout=30) as reply:  # fmt: skip
        next(reply.iter_lines())
    assert server.settles()
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    assert [server.metric(f"llm_serve_{name}") for name in names] == [0, 0, 0]


def test_a_body_that_never_ends(server):
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":")[-1]))) as caller:
        caller.settimeout(10)
        caller.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
        assert caller.recv(1_000).startswith(b"HTTP/1.1 408 ")


def test_the_time_of_a_request_begins_before_the_engine_looks(server, monkeypatch):
    slow_steps(server, monkeypatch, 5)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(post, server, max_tokens=1)
        time.sleep(0.2)
        begin = time.monotonic()
        assert post(server, max_tokens=1).status_code == 504
        assert time.monotonic() - begin < 4.5  # and not the rest of the step


def test_bytes_of_a_token_that_is_half_a_letter(server):
    """OpenAI's `bytes` are for joining: half a letter has none here, and never those of a replacement mark."""
    found = post(server, max_tokens=40, temperature=2, seed=3, logprobs=True, top_logprobs=20).json()
    told = found["choices"][0]["logprobs"]["content"]
    every = [each for place in told for each in (place, *place["top_logprobs"])]
    broken = [each for each in every if "\N{REPLACEMENT CHARACTER}" in each["token"]]
    assert broken and all(each["bytes"] is None for each in broken)
    assert all(bytes(each["bytes"]).decode() == each["token"] for each in every if each not in broken)


def test_a_chat_without_a_number_of_tokens_takes_what_the_cache_has():
    """The model has 4,096 positions and the cache 48: what the caller did not ask for is not held against him."""
    model, tokenizer = parts()
    engine = Engine(model, tokenizer, EngineConfig(num_blocks=3))
    for running in serve(engine, ServerConfig("tiny")):
        reply = httpx.post(f"{running.url}/v1/chat/completions", json={k: CHAT[k] for k in ("model", "messages")})
        assert reply.status_code == 200, reply.text
        assert reply.json()["usage"]["total_tokens"] == 48 or reply.json()["choices"][0]["finish_reason"] == "stop"
        assert httpx.get(f"{running.url}/v1/models").json()["data"][0]["max_model_len"] == 48


def test_an_adapter_that_is_called_as_the_model():
    model, tokenizer = parts()
    engine = Engine(model, tokenizer)
    engine.bank = type("Bank", (), {"names": [None, "tiny"]})()
    with pytest.raises(ValueError, match="an adapter is called 'tiny', as the model is"):
        application(engine, ServerConfig("tiny"))
    with pytest.raises(ValueError, match="model_name is empty"):
        ServerConfig("")


def test_a_draft_in_sixteen_bits():
    draft = type(pair()[1])(pair()[1].config).to(torch.bfloat16).eval()
    asked = Sampling(max_new_tokens=8, temperature=0)
    expected = Engine(pair()[1]).run([Request((1, 2, 3), asked)])[0][0].tokens
    assert speculate(pair()[1], [1, 2, 3], asked, DraftModel(draft)).tokens == expected


def test_waste_of_nothing():
    for lengths, size in (([], 4), ([0], 4), ([3], 0)):
        with pytest.raises(ValueError, match="at least"):
            paged_waste(lengths, size)


class Odd(BaseHTTPRequestHandler):
    """Servers that break off, write nonsense, or never come to an end, by the prompt."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.begin(b'{"data": [{"id": "tiny"}]}' if self.path == "/v1/models" else b"{}")

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        word, end = b'data: {"choices": [{"text": "a"}]}\n\n', b'data: {"choices": [{"finish_reason": "stop"}]}\n\n'
        self.begin({"cut": word, "nonsense": b"data: {no\n\n", "words": b'data: {"error": "full"}\n\n',
                    "tight": (word + end).replace(b": ", b":")}.get(prompt, b""))  # fmt: skip
        for _ in range(40 if prompt == "slow" else 0):
            try:
                self.wfile.write(word)
            except OSError:
                return
            time.sleep(0.1)

    def begin(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def odd() -> Iterator[str]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()


def test_what_is_no_whole_answer_is_not_counted_as_one(odd):
    work = [Job(0.0, prompt, 3) for prompt in ("cut", "nonsense", "words", "slow", "tight")]
    begin = time.monotonic()
    cut, nonsense, words, slow, tight = asyncio.run(load(odd, "tiny", work, limit=1.0))
    assert time.monotonic() - begin < 3.5
    assert cut.error == "the stream broke off before the answer's end" and "JSON" in nonsense.error
    assert words.error == "full" and slow.error == "not done within 1 s"
    assert tight.error == "" and len(tight.tokens) == 1


def test_a_load_without_answers_takes_no_negative_time():
    assert summary([Sample(2.0, error="lost")]).seconds == 0


def test_an_address_with_a_slash_and_a_rate_that_is_none(odd, capsys):
    main(["bench", f"{odd}/", "--requests", "1"])
    assert "names no model" not in capsys.readouterr().err
    assert main(["bench", odd, "--rate", "nan"]) == 1
    assert "--rate 0 or more" in capsys.readouterr().err


def test_figures_that_are_none(capsys):
    for option, value, message in (
        ("--dollars", "nan", "finite"), ("--dollars", "inf", "finite"), ("--memory", "inf", "finite"),
        ("--memory", "nan", "memory, bandwidth and rate above 0"),
    ):  # fmt: skip
        assert main(["plan", "13B", option, value]) == 1
        assert message in capsys.readouterr().err
    assert json_schema(parts()[1], {}, 300)  # an empty schema is any JSON
