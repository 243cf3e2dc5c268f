"""The race of the libraries, and the records of large models, at toy size on a CPU."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch
from llm_peft.lora.config import LoRAConfig
from llm_peft.records.large_models import MODELS, SIZES, TOY, measured
from llm_peft.records.steps import random_model
from llm_peft.settings import FineTune
from transformers import LlamaConfig

from course.plan.curriculum import find_root
from course.record import Setting

SCRIPT = find_root() / "Module-6/race/libraries.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("libraries_race", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_both_libraries_take_the_same_steps(script, method):
    row = script.race("1M", method, rows=2, time=32, rounds=2, steps=4)
    assert row["largest_difference"] < 1e-5
    assert row["losses"]["ours"][0] > row["losses"]["ours"][-1]
    assert set(row["seconds"]) == {"ours", "peft"} and len(row["all_seconds"]["ours"]) == 2


def test_the_race_is_a_command(script, tmp_path, monkeypatch, capsys):
    path = tmp_path / "race.json"
    options = ["--size", "1M", "--time", "32", "--rounds", "1", "--steps", "2", "--record", str(path)]
    monkeypatch.setattr(sys, "argv", ["libraries.py", *options])
    script.main()
    script.main()
    assert capsys.readouterr().out.count("ours over peft") == 4
    runs = json.loads(path.read_text())
    assert [[row["method"] for row in run["rows"]] for run in runs] == [["lora", "qlora"]] * 2
    monkeypatch.setattr(sys, "argv", ["libraries.py", "--rounds", "0"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--rounds must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "checkpointing"), [("lora", False), ("qlora", True)])
def test_a_large_models_row(method, checkpointing):
    row = measured(Setting("cpu", toy=True), "8B", method, checkpointing, steps=1)
    assert row["predicted_held"] == pytest.approx(row["held"], rel=0.01)
    assert row["predicted_peak"] == pytest.approx(row["peak"], rel=0.02)
    assert row["tokens_per_second"] > 0 and row["checkpointing"] is checkpointing


def test_what_does_not_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr("llm_peft.records.large_models.scale", type("Small", (), {"memory": 10**9}))
    monkeypatch.setattr("llm_peft.records.large_models.MODELS", {**MODELS, "8B": TOY})
    monkeypatch.setattr("llm_peft.records.large_models.budget", lambda *_: type("B", (), {
        "parameters": 1, "held": 1, "bytes": 2 * 10**9})())  # fmt: skip
    row = measured(Setting("cuda", toy=False), "8B", "lora", False)
    assert row["missing"] == "predicted 2 GB, and the card has 1" and "peak" not in row


def test_a_missing_package_is_a_row(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    row = measured(Setting("cpu", toy=True), "8B", "qlora", True)
    assert "needs the package bitsandbytes" in row["missing"]


def test_four_bits_drawn_layer_by_layer():
    """Nothing stays on `meta`, tied matrices are one, and the logits are numbers."""
    for tied in (True, False):
        config = LlamaConfig(**{key: getattr(TOY, key) for key in SIZES}, tie_word_embeddings=tied)
        settings = FineTune(method="qlora", lora=LoRAConfig(r=2), dtype="float32")
        model = random_model(config, settings, "cpu")
        tensors = [*model.parameters(), *model.buffers()]
        assert not any(each.is_meta for each in tensors)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
        assert torch.isfinite(model(torch.arange(20)[None]).logits).all()
