"""SECURITY.md, point by point."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from llm_core.store.registry import load_model
from llm_ops.command.deploy import TARGETS
from llm_ops.deploy import kubernetes
from llm_ops.deploy.settings import Deployment
from llm_ops.load.stand_in import stand_in
from llm_serve import Engine, EngineConfig
from llm_serve.server.app import application
from llm_serve.server.child import Child, ours
from llm_serve.server.settings import ServerConfig

from course.plan.curriculum import find_root

ROOT = find_root()
KEY = {"Authorization": "Bearer secret-key"}
SECRET = "seven two one"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stand_in(tmp_path_factory.mktemp("served") / "m", 128, 4)


@pytest.fixture(scope="module")
def client(folder):
    model, tokenizer = load_model(str(folder))
    engine = Engine(model, tokenizer, EngineConfig(max_num_seqs=1))
    app = application(engine, ServerConfig("m", "secret-key", request_seconds=1, max_body_bytes=5_000))
    with TestClient(app) as made:
        yield made


def ask(client, headers=KEY, **more):
    body = {"model": "m", "prompt": "one two", "max_tokens": 4, **more}
    return client.post("/v1/completions", json=body, headers=headers)


def test_each_point_names_a_test_that_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "Module-12/SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 8
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


@pytest.fixture(scope="module")
def child(folder):
    """A server in a process of its own that wants a key."""
    made = Child(ours(str(folder)), {"LLM_SERVE_API_KEY": "secret-key"})
    made.wait()
    yield made
    made.stop()


@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="no /proc/net on this machine")
def test_it_listens_on_this_machine_alone(child):
    port = int(child.url.rsplit(":", 1)[1])
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    listening = [line[1] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]
    assert listening == [f"{int.from_bytes(socket.inet_aton('127.0.0.1'), 'little'):08X}:{port:04X}"]


def test_without_the_key_there_is_no_answer(client):
    assert ask(client).status_code == 200
    for headers in ({}, {"Authorization": "Bearer secret"}, {"Authorization": "secret-key"}, {"Authorization": ""}):
        assert ask(client, headers).status_code == 401
        assert client.get("/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize("target", ["compose", "slurm", "kubernetes"])
def test_a_key_stands_in_no_file(target):
    """Where it comes from is named: a variable, or a secret of the cluster."""
    files = TARGETS[target](Deployment())
    text = "\n".join(files.values())
    assert "LLM_SERVE_API_KEY" in text and "--api_key" not in text


def test_no_text_of_a_chat_begins_or_ends_a_turn(client):
    for content, status in (("one two", 200), ("one <|endoftext|> two", 400)):
        body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
        found = client.post("/v1/chat/completions", json=body, headers=KEY)
        assert found.status_code == status
    assert "it holds the special token '<|endoftext|>'" in found.json()["error"]["message"]


def test_limits_say_no(client, folder):
    """The body, the prompt, the time. That one too many in the queue gets 429 is Module 7's test."""
    assert client.post("/v1/completions", content=b"x" * 5_001, headers=KEY).status_code == 413
    assert ask(client, prompt="one " * 1_100).status_code == 400
    engine = Engine(*load_model(str(folder)), EngineConfig(max_num_seqs=1))
    with TestClient(application(engine, ServerConfig("m", request_seconds=0.05))) as hasty:
        assert ask(hasty, prompt="one " * 150, max_tokens=900).status_code == 504


def test_a_field_that_is_not_known_is_refused(client):
    for field in ("file", "tools", "response_url", "logit_bias"):
        assert ask(client, **{field: {"a": 1}}).status_code == 400


def test_a_replica_may_call_nobody():
    policy = next(each for each in kubernetes.objects(Deployment()) if each["kind"] == "NetworkPolicy")
    assert policy["spec"]["egress"] == [] and "Egress" in policy["spec"]["policyTypes"]


def test_no_prompt_is_in_a_log_or_a_metric(child):
    """Neither of one that is answered nor of one that is refused; the log is all that a process writes."""
    body = {"model": "m", "prompt": SECRET, "max_tokens": 8, "temperature": 0}
    answer = httpx.post(f"{child.url}/v1/completions", json=body, headers=KEY, timeout=60).json()
    text = answer["choices"][0]["text"]
    refused = httpx.post(f"{child.url}/v1/completions", json={**body, "n": 0}, headers=KEY, timeout=60)
    metrics = httpx.get(f"{child.url}/metrics").text
    written = child.log.read_text()
    assert refused.status_code == 400 and "llm-serve" in written and len(text.strip()) > 3
    for where in (written, metrics):
        assert SECRET not in where and text not in where


def test_the_command_shows_no_key(child):
    """Who lists processes sees options: the key comes by the environment."""
    assert httpx.get(f"{child.url}/v1/models").status_code == 401
    assert httpx.get(f"{child.url}/v1/models", headers=KEY).status_code == 200
    shown = subprocess.run(["ps", "-o", "args=", "-p", str(child.process.pid)], capture_output=True, text=True)
    assert "llm_serve" in shown.stdout and "secret-key" not in shown.stdout
