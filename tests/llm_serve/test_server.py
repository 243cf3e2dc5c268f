"""The server, as its callers see it: the official client, and those who send what they should not."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import httpx
import openai
import pytest
import torch
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llm_core import GPT
from llm_core.config import GPTConfig
from llm_core.generate import Sampling
from llm_core.store.registry import save_model
from llm_data.tokenizers.fast import train_fast_tokenizer, vocab_size
from llm_peft.lora.base import fingerprint_of_model
from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.files import save_adapter
from llm_peft.lora.inject import inject
from llm_serve import Engine, EngineConfig, Request
from llm_serve.server.app import application
from llm_serve.server.child import ours, started
from llm_serve.server.run import load_engine
from llm_serve.server.settings import ServerConfig
from prometheus_client.parser import text_string_to_metric_families

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two"}], "temperature": 0, "max_tokens": 12}


def parts():
    tokenizer = train_fast_tokenizer(["user: one two three assistant: four five é 😀"] * 20, 330)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size(tokenizer), 32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=4_096,
        initializer_range=0.3,
    )  # fmt: skip
    return GPT(config).eval(), tokenizer


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    engine: Engine
    worker: object

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def metric(self, name: str, **labels: str) -> float:
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    def settles(self) -> bool:
        """Whether everything is freed within some seconds."""
        for _ in range(200):
            if not self.engine.unfinished and not self.engine.scheduler.pool.used and not self.worker._tickets:
                return True
            time.sleep(0.05)
        return False


def serve(engine: Engine, config: ServerConfig) -> Iterator[Running]:
    app = application(engine, config)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", engine, app.state.worker)
    server.should_exit = True
    thread.join()
    assert not app.state.worker.alive
    assert engine.unfinished or engine.scheduler.pool.used == 0  # of an engine that failed, requests stay open


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model, tokenizer = parts()
    yield from serve(Engine(model, tokenizer, EngineConfig(num_blocks=400, max_num_seqs=8)), ServerConfig("tiny"))


@pytest.fixture
def small() -> Iterator[Running]:
    """One answer at a time, one waiting, a key, and four seconds for a request."""
    model, tokenizer = parts()
    config = EngineConfig(num_blocks=300, max_num_seqs=1, max_waiting=1)
    yield from serve(Engine(model, tokenizer, config), ServerConfig("tiny", "secret", request_seconds=4.0))


def expected(server: Running, text: str, **sampling) -> str:
    ids = tuple(server.engine.tokenizer(text, add_special_tokens=False).input_ids)
    model, tokenizer = parts()
    return Engine(model, tokenizer).run([Request(ids, Sampling(**sampling))])[0][0].text


def test_the_official_client_gets_the_engines_answers(server):
    client = server.client()
    assert [each.id for each in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    wanted = expected(server, "user: one two\nassistant: ", max_new_tokens=12, temperature=0)
    found = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    assert found.choices[0].message.content == wanted and found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 12 and found.usage.total_tokens == 12 + found.usage.prompt_tokens
    assert all(each.logprob == each.top_logprobs[0].logprob for each in found.choices[0].logprobs.content)
    drawn = {"max_new_tokens": 9, "temperature": 1.2, "top_p": 0.9, "seed": 5, "top_k": 20, "repetition_penalty": 1.1}
    text = client.completions.create(
        model="tiny", prompt="one two", max_tokens=9, temperature=1.2, top_p=0.9, seed=5, logprobs=1,
        extra_body={"top_k": 20, "repetition_penalty": 1.1},
    )  # fmt: skip
    assert text.choices[0].text == expected(server, "one two", **drawn)
    assert len(text.choices[0].logprobs.token_logprobs) == 9
    several = client.chat.completions.create(**{**CHAT, "temperature": 1.5, "n": 3, "seed": 1})
    assert len({each.message.content for each in several.choices}) == 3


def test_streams_say_the_same_piece_by_piece(server):
    client = server.client()
    whole = client.chat.completions.create(**CHAT)
    events = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    assert "".join(each.choices[0].delta.content or "" for each in events if each.choices) == (
        whole.choices[0].message.content
    )
    assert events[0].choices[0].delta.role == "assistant"
    assert [each.choices[0].finish_reason for each in events if each.choices][-1] == "length"
    assert events[-1].choices == [] and events[-1].usage == whole.usage
    text = client.completions.create(model="tiny", prompt="one", max_tokens=7, temperature=0, stream=True)
    assert "".join(each.choices[0].text for each in text) == expected(server, "one", max_new_tokens=7, temperature=0)


def test_stop_texts_and_schemas(server):
    client = server.client()
    whole = client.chat.completions.create(**CHAT).choices[0].message.content
    stop = whole[3:5]
    cut = client.chat.completions.create(**CHAT, stop=stop).choices[0]
    assert cut.message.content == whole[: whole.find(stop)] and cut.finish_reason == "stop"
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 9}},
              "required": ["age"], "additionalProperties": False}  # fmt: skip
    found = client.chat.completions.create(
        **{**CHAT, "max_tokens": 100}, seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "age", "schema": schema}},
    )  # fmt: skip
    assert found.choices[0].finish_reason == "stop" and json.loads(found.choices[0].message.content)["age"] in range(10)


def test_many_at_once_get_what_each_gets_alone(server):
    client = server.client()
    alone = {n: expected(server, f"one {n}", max_new_tokens=n, temperature=0) for n in range(3, 19)}
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(
            lambda n: client.completions.create(
                model="tiny", prompt=f"one {n}", max_tokens=n, temperature=0
            ).choices[0].text, alone,
        ))  # fmt: skip
    assert found == list(alone.values()) and server.settles()


BAD = {
    "no JSON": (b"{", 400, "the body is no JSON"),
    "a list": (b"[]", 400, "the body must be a JSON object"),
    "deep": (b"[" * 100_000, 400, "the body is no JSON"),
    "no letters": (b'{"model": "\xff"}', 400, "the body is no JSON"),
    "no messages": ({"model": "tiny"}, 400, "messages is wrong: Field required"),
    "empty": ({**CHAT, "messages": []}, 400, "at least 1 item"),
    "another model": ({**CHAT, "model": "gpt-9"}, 404, "no model is called 'gpt-9'; there are tiny"),
    "a typo": ({**CHAT, "temprature": 1}, 400, "temprature is no field that this server knows"),
    "a number in quotes": ({**CHAT, "temperature": "1"}, 400, "temperature is wrong"),
    "too hot": ({**CHAT, "temperature": 3}, 400, "less than or equal to 2"),
    "no number": ({**CHAT, "top_p": float("nan")}, 400, "top_p is wrong"),
    "tools": ({**CHAT, "tools": [{"type": "function"}]}, 400, "tools=.* is not done by this server"),
    "penalty": ({**CHAT, "frequency_penalty": 0.5}, 400, "frequency_penalty=0.5 is not done"),
    "a picture": (
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "wrong",
    ),
    "too many stops": ({**CHAT, "stop": list("abcde")}, 400, "stop has 5 texts; at most 4"),
    "an empty stop": ({**CHAT, "stop": ""}, 400, "a stop text is empty"),
    "too many answers": ({**CHAT, "n": 9}, 400, "n=9 answers; from 1 to 8"),
    "a long prompt": ({**CHAT, "messages": [{"role": "user", "content": "x" * 9_000}]}, 400, "leaves no room"),
    "a large body": (b" " * 5_000_000, 413, "larger than 4,000,000 bytes"),
    "a seed beyond": ({**CHAT, "seed": 2**70}, 400, "seed="),
    "two names": ({**CHAT, "max_completion_tokens": 3}, 400, "two names of one number"),
    "a bad schema": (
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "none"}}}}, 400,
        "the JSON schema cannot be followed",
    ),
    "no schema": ({**CHAT, "response_format": {"type": "json_schema"}}, 400, "needs json_schema.schema"),
    "usage without a stream": ({**CHAT, "stream_options": {"include_usage": True}}, 400, "needs stream to be true"),
    "half a letter": ({**CHAT, "messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_the_interfaces_error(server, name):
    body, status, message = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=content, timeout=30)
    error = reply.json()["error"]
    assert reply.status_code == status, error
    assert re.search(message, error["message"]) and "\n" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert server.settles() and server.client().chat.completions.create(**CHAT)


def test_unknown_places_and_prompts_of_completions(server):
    assert httpx.get(f"{server.url}/v2").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405
    assert httpx.get(f"{server.url}/v1/models/other").json()["error"]["code"] == "model_not_found"
    for prompt, message in (
        ("", "a prompt is empty"), ([], "a prompt is empty"), (["a", "b"], "2 prompts in one request"),
        ([1, 10_000], "a prompt has token 10000"), ([-1], "a prompt has token -1"), (["a", 1], "prompt"),
    ):  # fmt: skip
        reply = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": prompt})
        assert reply.status_code == 400 and message in reply.json()["error"]["message"]
    ids = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 2}
    assert httpx.post(f"{server.url}/v1/completions", json=ids).status_code == 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([
    "model", "messages", "temperature", "top_p", "top_k", "n", "seed", "stop", "stream", "max_tokens", "logprobs",
    "top_logprobs", "response_format", "priority", "user", "stream_options", "tools", "prompt", "logit_bias",
])  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(FIELDS, VALUES, max_size=5))
def test_whatever_is_sent_the_server_lives(server, fields):
    """Any values in any fields: an answer or an error of the caller's, never a failure of the server's."""
    body = {**CHAT, "max_tokens": 2, **fields}
    # No answer to the end of the context, which takes half a minute: other tests have long ones.
    if body["max_tokens"] is None:
        body["max_completion_tokens"] = 4
    elif isinstance(body["max_tokens"], int | float) and 4 < body["max_tokens"] < math.inf:
        body["max_tokens"] = 4
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=json.dumps(body).encode(), timeout=30)
    assert reply.status_code in (200, 400, 404), reply.text
    assert server.worker.alive


def test_who_goes_away_takes_his_request_with_him(server):
    before = server.metric("llm_serve_generation_tokens_total")
    body = {**CHAT, "max_tokens": 4_000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as reply:
        next(reply.iter_lines())
    assert server.settles()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json={**body, "stream": False}, timeout=0.3)
    assert server.settles()
    assert server.metric("llm_serve_generation_tokens_total") - before < 8_000


def test_the_numbers_are_those_of_what_was_done(server):
    names = ("llm_serve_prompt_tokens_total", "llm_serve_generation_tokens_total",
             "llm_serve_time_to_first_token_seconds_count", "llm_serve_time_per_output_token_seconds_count",
             "llm_serve_e2e_request_latency_seconds_count")  # fmt: skip
    assert server.settles()
    before = [server.metric(name) for name in names]
    ended = server.metric("llm_serve_request_success_total", finished_reason="length")
    usage = [server.client().chat.completions.create(**CHAT).usage for _ in range(3)]
    after = [server.metric(name) - old for name, old in zip(names, before, strict=True)]
    assert after == [sum(each.prompt_tokens for each in usage), 36, 3, 33, 3]
    assert server.metric("llm_serve_request_success_total", finished_reason="length") - ended == 3
    assert server.metric("llm_serve_num_requests_running") == server.metric("llm_serve_kv_cache_usage_perc") == 0


def test_a_key_is_asked_for(small):
    for key in ("wrong", "secre", "sécret"):
        for path in ("models", "chat/completions"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            reply = httpx.request("GET" if path == "models" else "POST", f"{small.url}/v1/{path}", headers=headers)
            assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{small.url}/health").status_code == 200
    assert small.client("secret").chat.completions.create(**CHAT)


def test_one_too_many_and_one_too_long(small, monkeypatch):
    """One answer is written, one waits; the third gets 429 at once, and those that take too long 504."""
    client, body = small.client("secret"), {**CHAT, "max_tokens": 4_000}
    step, scheduler = small.engine.step, small.engine.scheduler

    def slowly():
        time.sleep(0.005)
        return step()

    monkeypatch.setattr(small.engine, "step", slowly)  # 20 s for an answer, on whatever machine
    with ThreadPoolExecutor(2) as threads:
        slow = []
        for queue in (scheduler.running, scheduler.waiting):
            slow.append(threads.submit(client.chat.completions.create, **body))
            while not queue:
                time.sleep(0.005)
        with pytest.raises(openai.RateLimitError, match="1 requests wait already") as refused:
            client.chat.completions.create(**CHAT)
        assert refused.value.response.headers["retry-after"] == "1"
        for each in slow:
            with pytest.raises(openai.InternalServerError, match="not done within 4 s"):
                each.result()
    assert small.settles() and client.chat.completions.create(**CHAT)
    events = list(client.chat.completions.with_raw_response.create(**body, stream=True).http_response.iter_lines())
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "timeout"
    assert small.metric("llm_serve_request_refused_total", status="429") == 1
    assert small.metric("llm_serve_request_refused_total", status="504") == 3  # the stream too, whose status was 200
    assert small.metric("llm_serve_request_refused_total", status="500") == 0  # there before anything grows


def test_an_engine_that_fails_says_so_to_all(small, monkeypatch):
    def fail():
        raise RuntimeError("out of memory: what a prompt said")

    monkeypatch.setattr(small.engine, "step", fail)
    with pytest.raises(openai.InternalServerError, match="the engine failed: RuntimeError") as told:
        small.client("secret").chat.completions.create(**CHAT)
    assert told.value.status_code == 503 and "prompt" not in str(told.value)  # a failure tells no one's text
    assert httpx.get(f"{small.url}/health").status_code == 503
    with pytest.raises(openai.InternalServerError, match="restart the server"):
        small.client("secret").chat.completions.create(**CHAT)


def soak(server: Running, seconds: float, seed: int = 0) -> int:
    """Requests of all kinds from eight callers, some of whom go away; how many were answered."""
    dice, until, answered = random.Random(seed), time.monotonic() + seconds, []

    def call(number: int) -> None:
        mine = random.Random(dice.random() + number)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while time.monotonic() < until:
                prompt = "one two three four five " * mine.randint(1, 60) + str(mine.randint(0, 5))
                body = {"model": "tiny", "prompt": prompt, "max_tokens": mine.randint(1, 40), "n": mine.randint(1, 2),
                        "temperature": mine.choice([0, 1]), "stream": mine.random() < 0.5,
                        "priority": mine.randint(0, 2)}  # fmt: skip
                if mine.random() < 0.1:
                    body["temperature"] = -1
                with client.stream("POST", "/v1/completions", json=body) as reply:
                    if mine.random() < 0.2:
                        continue  # goes away
                    reply.read()
                    assert reply.status_code == (400 if body["temperature"] < 0 else 200)
                    answered.append(number)

    with ThreadPoolExecutor(8) as threads:
        for each in [threads.submit(call, number) for number in range(8)]:
            each.result()
    return len(answered)


def held_bytes() -> int:
    import gc

    import psutil

    gc.collect()
    return psutil.Process().memory_info().rss


def test_a_short_soak_leaves_nothing_behind(server):
    soak(server, 3)
    assert server.settles()
    before = held_bytes()
    assert soak(server, 6, seed=1) > 20
    assert server.settles() and server.worker.alive
    # 2.5 MB were seen after 340 answers and 5.7 MB after 1,050: the engine's log fills up to its 10,000 steps.
    assert held_bytes() - before < 20e6
    assert max(step.blocks for step in server.engine.log) <= 400


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_are_bounded_in_memory(server):
    soak(server, 60)
    before = held_bytes()
    assert soak(server, 540, seed=2) > 1_000
    assert server.settles() and held_bytes() - before < 60e6  # the same, and what the allocator keeps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    model, tokenizer = parts()
    save_model(model, tokenizer, place / "tiny")
    (place / "tiny" / "chat_template.jinja").write_text(TEMPLATE)
    inject(model, LoRAConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    save_adapter(model, place / "german", "tiny", fingerprint_of_model(parts()[0]))
    save_adapter(model, place / "foreign", "large", "0" * 16)
    return place


def test_an_adapter_is_asked_for_as_a_model(folder):
    engine = load_engine(str(folder / "tiny"), [f"german={folder / 'german'}"], device="cpu")
    for running in serve(engine, ServerConfig("tiny")):
        client = running.client()
        assert [each.id for each in client.models.list()] == ["tiny", "german"]
        plain, german = (client.chat.completions.create(**{**CHAT, "model": each}) for each in ("tiny", "german"))
        assert plain.choices[0].message.content == expected(
            running, "user: one two\nassistant: ", max_new_tokens=12, temperature=0
        )
        assert german.choices[0].message.content != plain.choices[0].message.content
    for wrong, message in (
        ("german", "give NAME=FOLDER"), (f"x={folder / 'foreign'}", "trained on another model large, not on"),
        (f"x={folder / 'tiny'}", "has no adapter_config.json"),
    ):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_engine(str(folder / "tiny"), [wrong], device="cpu")


def test_the_command_serves_and_lets_open_answers_end(folder):
    """SIGTERM in the middle of a stream: it comes to its end, a new caller is refused, and the exit code is 0."""
    command = [
        sys.executable,
        "-m",
        "llm_serve.cli",
        str(folder / "tiny"),
        "--port",
        "0",
        "--served_model_name",
        "tiny",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "LLM_SERVE_API_KEY": "secret"})  # fmt: skip
    try:
        url = process.stdout.readline().split()[-1]
        assert httpx.get(f"{url}/v1/models").status_code == 401
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        assert json.dumps("tiny") in httpx.get(url).text  # the page to talk on
        stream = client.chat.completions.create(**{**CHAT, "max_tokens": 300}, stream=True)
        next(stream)
        process.send_signal(signal.SIGTERM)
        events = list(stream)
        assert events[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    again = subprocess.run([*command[:4], "--port", str(taken.getsockname()[1])], capture_output=True, text=True)
    assert again.returncode == 1 and "cannot be listened on" in again.stderr and again.stderr.count("\n") == 1
    taken.close()


def test_a_server_in_a_process_of_its_own(folder):
    with started(ours(str(folder / "tiny")), {"LLM_SERVE_API_KEY": "secret"}) as url:
        assert httpx.get(f"{url}/v1/models").status_code == 401
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    with (
        pytest.raises(RuntimeError, match=r"not ready: llm-serve: .*no such checkpoint, nor a folder"),
        started(ours("missing-folder")),
    ):
        raise AssertionError("it cannot have started")


def test_a_server_ends_with_the_process_that_started_it(folder):
    """Also where that one is killed, and can end nothing."""
    code = (
        "import sys, time\nfrom llm_serve.server.child import Child, ours\nchild = Child(ours(sys.argv[1]))\n"
        "child.wait()\nprint(child.process.pid, child.url, flush=True)\ntime.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder / "tiny")], stdout=subprocess.PIPE, text=True)
    pid, url = parent.stdout.readline().split()
    try:
        assert httpx.get(f"{url}/health").status_code == 200
        parent.kill()
        parent.wait()
        until = time.monotonic() + 30
        with pytest.raises(httpx.TransportError):
            while time.monotonic() < until:
                httpx.get(f"{url}/health")
                time.sleep(0.2)
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def test_a_quantised_folder_is_served(tmp_path, folder):
    """With the answers of the quantised model, and not of the one before."""
    from llm_core import load_model
    from llm_core.generate import generate
    from llm_serve.quantization.apply import quantize
    from llm_serve.quantization.export import save_quantized
    from llm_serve.quantization.rounding import WeightScheme

    model, tokenizer = load_model(folder / "tiny")
    found = quantize(model, "rtn", WeightScheme(bits=3, group_size=None))
    save_quantized(found.model, tokenizer, tmp_path / "packed")
    engine = load_engine(str(tmp_path / "packed"), ())
    prompts = [(5, 7, 9), (11, 3)]
    greedy = Sampling(max_new_tokens=12, temperature=0)
    said = [list(answers[0].tokens) for answers in engine.run([Request(each, greedy) for each in prompts])]
    assert said == generate(found.model, prompts, greedy) != generate(model, prompts, greedy)
