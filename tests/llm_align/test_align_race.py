"""Whole steps of ours beside trl's own trainers, at a small size; and what a GPU is to measure."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from llm_align.records import rounds
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_core.store.registry import save_model

from course.record import Setting

RACE = Path(__file__).parents[2] / "Module-8" / "race" / "against_trl.py"


@pytest.fixture(scope="module")
def race():
    spec = importlib.util.spec_from_file_location("race_against_trl", RACE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def roomy(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("roomy")
    torch.manual_seed(0)
    config = GPTConfig(len(tokenizer), hidden_size=32, num_hidden_layers=2, max_position_embeddings=1024,
                       initializer_range=0.1)  # fmt: skip
    save_model(GPT(config), tokenizer, folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_ten_steps_of_dpo_are_those_of_trls_trainer(race, roomy, monkeypatch):
    """End tokens, masks, reference, loss, gradients: anything that differs would part losses that fall this fast."""
    monkeypatch.setattr(race, "RATE", 1e-3)
    found = race.dpo(roomy, 4)
    losses = {name: [step() for _ in range(10)] for name, step in found.items()}
    assert losses["ours"] == pytest.approx(losses["trl"], abs=1e-5)
    assert losses["ours"][0] == pytest.approx(0.693147, abs=1e-5) and losses["ours"][-1] < 0.6


@pytest.mark.filterwarnings("ignore")
def test_ten_steps_of_grpo_on_the_same_answers_are_those_of_trls_trainer(race, roomy, monkeypatch):
    monkeypatch.setattr(race, "RATE", 1e-3)
    found = race.grpo_learning(roomy, 2, 4, 6)
    losses = {name: [step() for _ in range(10)] for name, step in found.items()}
    assert losses["ours"] == pytest.approx(losses["trl"], abs=1e-5)
    assert abs(losses["ours"][0]) < 1e-5 and losses["ours"][-1] < -0.1


def test_rows_of_a_round():
    rows = list(rounds.grpo(Setting("cpu", toy=True)))
    assert [row["row"] for row in rows] == [f"{name}, 8 x 8 answers" for name in ("1B full", "1B lora", "8B lora")]
    for row in rows:
        assert "missing" not in row and 0 < row["share_of_writing"] < 1 and 64 <= row["written_tokens"] <= 256
        assert row["written_per_second"] == pytest.approx(row["written_tokens"] / row["writing_seconds"])
