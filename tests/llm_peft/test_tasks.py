"""The task of signatures: its answers are what Python itself says, and a score counts what it says it counts."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys

import pytest
import torch
from llm_core.model import GPT, GPTConfig
from llm_peft.chat.records import read_examples
from llm_peft.command.chat import answer, answers
from llm_peft.tasks.other_text import other_texts
from llm_peft.tasks.signatures import Signature, score, signatures, write_examples

from course.plan.curriculum import find_root


def test_answers_are_what_python_says():
    found = signatures(200)
    assert len({each.line for each in found}) == 200 and found == signatures(200) and found != signatures(200, seed=1)
    for each in found:
        (node,) = ast.parse(each.line).body
        given = node.args
        names = [part.arg for part in [*given.posonlyargs, *given.args] if part]
        said = json.loads(each.answer)
        assert said["name"] == node.name == each.name
        assert said["parameters"][: len(names)] == names
        assert len(said["parameters"]) == sum(
            map(len, (given.posonlyargs, given.args, given.kwonlyargs, [p for p in (given.vararg, given.kwarg) if p]))
        )


def test_stars_and_defaults(tmp_path):
    (tmp_path / "a.py").write_text("def f(a, /, b=1, *c, d, **e): pass\ndef none(): pass\nasync def g(x): pass\n")
    (tmp_path / "broken.py").write_text("def (")
    (found,) = signatures(1, root=tmp_path)
    assert found == Signature("def f(a, /, b=1, *c, d, **e): ...", "f", ("a", "b", "c", "d", "e"))
    with pytest.raises(ValueError, match="there are 1 functions of that size, and 2 were asked for"):
        signatures(2, root=tmp_path)


def test_a_score_by_hand():
    wanted = [Signature("def f(a): ...", "f", ("a",))] * 6
    given = [
        ('{"name": "f", "parameters": ["a"]}', True), ('{"name": "f", "parameters": ["a"]}', False),
        ('{"name": "f", "parameters": ["b"]}', True), ('{"name": "g", "parameters": ["a"]}', True),
        ('{"name": "f", "parameters": ["a"], "more": 1}', True), ("def f", True),
    ]  # fmt: skip
    found = score(given, wanted)
    assert (found.parsed, found.named, found.right, found.ended) == pytest.approx((5 / 6, 4 / 6, 2 / 6, 5 / 6))
    assert found.error == pytest.approx((2 / 6 * 4 / 6 / 6) ** 0.5)
    for odd in ("[]", "3", "null", '{"name": 1}', '{"parameters": 3, "name": "f"}', "{" * 5000):
        assert score([(odd, True)], wanted[:1]).parsed == 0


def test_examples_are_read_back(tmp_path):
    found = signatures(3)
    write_examples(tmp_path / "new" / "a.jsonl", found)
    assert [list(each.messages) for each in read_examples(tmp_path / "new" / "a.jsonl")] == [e.messages for e in found]


def test_other_text_is_text(tokenizer):
    english, python = other_texts(tokenizer, rows=3, time=64)
    assert english.ids.shape == python.ids.shape == (3, 64)
    decoded = tokenizer.decode(english.ids[0].tolist())
    assert "assert" in decoded.lower() and len(decoded.encode()) == pytest.approx(64 * english.bytes_per_token, rel=0.5)
    torch.manual_seed(0)
    model = GPT(GPTConfig(512, 64, max_position_embeddings=64)).eval()
    bits = english.bits(model)
    # A fresh model guesses among 512 tokens.
    assert bits == pytest.approx(9 / english.bytes_per_token, rel=0.05)


def test_many_answers_are_those_of_each_alone(base):
    from llm_core.store.registry import load_model

    model, tokenizer = load_model(base, transformers=True)
    questions = [[{"role": "user", "content": text}] for text in ("What is 1?", "What is 12 plus one?", "It is 3.")]
    together = answers(model, tokenizer, questions, max_new_tokens=6)
    assert together == [answer(model, tokenizer, each, max_new_tokens=6) for each in questions]


def test_the_race_of_ways(base, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("teach", find_root() / "Module-6/race/teach.py")
    teach = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(teach)
    monkeypatch.setattr(teach, "CONTEXT", 200)
    path = tmp_path / "teach.json"
    monkeypatch.setattr(sys, "argv", ["teach.py", "--seeds", "1", "--questions", "2", "--steps", "1", "2", "--base",
                                      str(base), "--record", str(path)])  # fmt: skip
    teach.main()
    (run,) = json.loads(path.read_text())
    assert [row["row"] for row in run["rows"]] == ["full", "lora", "qlora"]
    for row in run["rows"]:
        assert [point["step"] for point in row["points"]] == [1, 2] and len(row["losses"]) == 2
        assert row["predicted_peak"] == pytest.approx(row["peak"], rel=0.02)
        assert set(row["points"][0]["bits_per_byte"]) == {"English", "Python"}
    sizes = {row["row"]: row["kept_bytes"] for row in run["rows"]}
    assert sizes["lora"] == sizes["qlora"] < sizes["full"]
    assert capsys.readouterr().out.count("right after 1: ") == 3
