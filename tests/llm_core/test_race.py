"""The race's own model and batches still run; its times are measured where the race is."""

import importlib
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def race(monkeypatch):
    """A module of a race, by its folder and name, which is on no path of ours."""

    def load(folder, name):
        monkeypatch.syspath_prepend(str(ROOT / folder / "race"))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


@pytest.mark.parametrize(
    "change",
    [{}, {"rotary": False, "rms": False, "mlp": "gelu"}, {"mlp": "relu2", "previous": 2, "qk_norm": True, "muon": 0.02},
     {"linear": True, "epochs": True, "wide_init": True}],
)  # fmt: skip
def test_each_part_can_be_changed_and_learns(change, race):
    model = race("Module-3", "adjustable_gpt")
    text = torch.tensor([0, 1, 2, 3] * 100)  # what comes next is certain
    recipe = replace(model.Recipe(width=32, batch=4), learning_rate=1e-2, **change)
    training = model.Training(recipe, text, 5, 100, 0)
    ids, targets = text[:64][None], text[1:65][None]
    before = training.loss(ids, targets)
    for _ in range(100):
        training.step()
    assert float(training.loss(ids, targets)) < 0.5 * float(before)


@pytest.mark.parametrize("contender", ["ours", "ours, best_fit", "lists"])
def test_each_contender_gives_batches(contender, race, tmp_path):
    from llm_data.tokenizers.fast import train_fast_tokenizer

    loaders = race("Module-2", "loaders")
    documents = [f"document {n} about nothing at all" for n in range(200)]
    arguments = Namespace(contender=contender, context=16, batch_size=4, processes=1)
    make = loaders.BUILDERS[contender](documents, train_fast_tokenizer(documents, 300), tmp_path, arguments)
    batch = next(iter(make()))
    assert batch["input_ids"].shape == batch["labels"].shape == (4, 16)
