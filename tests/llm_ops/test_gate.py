"""The gate: what passes, what does not, and that too few questions never pass."""

import asyncio
import random

import httpx
import pytest
from llm_align.tasks.task import Question
from llm_ops.gate import ask
from llm_ops.gate.verdict import Gate, clean


def pairs(count, worse, seed, right=0.6, shared=0.7):
    dice, before, after = random.Random(seed), [], []
    for _ in range(count):
        one = dice.random()
        other = one if dice.random() < shared else dice.random()
        before.append(float(one < right))
        after.append(float(other < right - worse))
    return before, after


@pytest.mark.parametrize("count", [2, 10, 30, 200, 1000])
def test_a_model_at_the_margin_passes_one_time_in_twenty_or_less(count):
    """The promise of 95%: a model that is worse by just the margin. 5% and three standard errors of 100 tries."""
    gate = Gate(margin=0.1, draws=400)
    passed = sum(gate.decide(*pairs(count, 0.1, seed)).passed for seed in range(100))
    assert passed <= 5 + 3 * (100 * 0.05 * 0.95) ** 0.5


def test_an_equal_model_passes_when_it_is_asked_enough():
    gate = Gate(margin=0.05, draws=400)
    assert sum(gate.decide(*pairs(2000, 0.0, seed)).passed for seed in range(20)) >= 18
    few = gate.decide(*pairs(30, 0.0, 0))
    assert not few.passed and "too few" in few.reason


def test_ten_answers_that_are_alike_are_not_certainty():
    verdict = Gate(margin=0.05).decide([1.0] * 10, [1.0] * 10)
    assert not verdict.passed and verdict.difference.low < -0.05 < 0 < verdict.difference.high
    assert (verdict.before, verdict.after) == (1.0, 1.0)


@pytest.mark.parametrize("wrong", [
    lambda: Gate(margin=0), lambda: Gate(confidence=0.4), lambda: Gate(confidence=1.0),
    lambda: Gate().decide([1, 0], [1]), lambda: Gate().decide([1, 2], [1, 0]),
    lambda: Gate().decide([1, 0.5], [0, float("nan")]),
    lambda: ask.in_format(Question("a", "b", prompt="p"), "no place"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(wrong):
    with pytest.raises(ValueError) as told:
        wrong()
    assert "\n" not in str(told.value)


def test_questions_that_were_trained_on_are_left_out():
    assert clean(["what is two", "what is  three", "what is four"], ["a b", "so what is three now"]) == [0, 2]


def answering(handler):
    """Let `ask.scores` talk to a function in place of a server."""
    real = httpx.AsyncClient

    def made(**options):
        return real(**options, transport=httpx.MockTransport(handler))

    return made


CHAT = Question("4", "5", messages=({"role": "system", "content": "be short"}, {"role": "user", "content": "2 + 2?"}))
PLAIN = Question("b", "c", prompt="a")


def test_each_question_is_asked_in_its_wording_and_scored_by_its_own(monkeypatch):
    import json

    asked = []

    def handler(request):
        body = json.loads(request.content)
        asked.append((request.url.path, body, request.headers.get("authorization")))
        choice = {"message": {"content": "4"}} if "messages" in body else {"text": "c"}
        return httpx.Response(200, json={"choices": [choice]})

    monkeypatch.setattr(ask.httpx, "AsyncClient", answering(handler))
    found = asyncio.run(
        ask.scores("http://x", "m", [CHAT, PLAIN], lambda prompt, answer: float((prompt, answer) == ("2 + 2?", "4")),
                   "Say: {question}", 8, api_key="k")
    )  # fmt: skip
    assert found == [1.0, 0.0]
    paths = {path: body for path, body, _ in asked}
    assert paths["/v1/chat/completions"]["messages"][-1]["content"] == "Say: 2 + 2?"
    assert paths["/v1/chat/completions"]["messages"][0]["content"] == "be short"
    assert paths["/v1/completions"]["prompt"] == "Say: a" and paths["/v1/completions"]["temperature"] == 0
    assert all(key == "Bearer k" for _, _, key in asked)


@pytest.mark.parametrize("handler", [
    lambda request: httpx.Response(429, text="full"),
    lambda request: (_ for _ in ()).throw(httpx.ConnectError("gone")),
])  # fmt: skip
def test_a_question_without_an_answer_ends_the_gate(monkeypatch, handler):
    monkeypatch.setattr(ask.httpx, "AsyncClient", answering(handler))
    with pytest.raises(RuntimeError, match="question of the gate"):
        asyncio.run(ask.scores("http://x", "m", [PLAIN], lambda prompt, answer: 1.0))
