"""The small model that lessons share: its recipe, what is kept of its training, and the cache."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llm_core.small_model import Recipe, train_baby

TINY = Recipe(tokenizer="char", context=16, batch_size=4, steps=6, hidden_size=32, layers=1, keep=(0, 3), validations=2)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("text")
    for number in range(300):  # so that each part of the split has some
        (folder / f"{number}.txt").write_text(f"the number {number} is written here, and again {number}\n" * 3)
    return replace(TINY, corpus=f"text:{folder}")


def test_what_is_kept_of_a_training(recipe: Recipe) -> None:
    baby = train_baby(recipe)
    assert len(baby.losses) == 6 and sorted(baby.earlier) == [0, 3]
    assert sorted(baby.val_losses) == [3, 6] and baby.val_loss == baby.val_losses[6]
    assert (Path(baby.folder) / "model.safetensors").is_file() and not baby.model.training
    std = baby.earlier[0].model.embed_tokens.weight.std().item()
    assert std == pytest.approx(math.sqrt(2 / (5 * 32)), rel=0.1)  # a thousand draws: 2% is one standard error
    again = train_baby(recipe)  # from the cache
    assert again.val_losses == baby.val_losses and again.losses == baby.losses
    assert torch.equal(again.model.lm_head.weight, baby.model.lm_head.weight)
    # A lesson that trains it, and one that finds it, read the same batches afterwards.
    first, second = (next(iter(each.data.train_dataloader()))["input_ids"] for each in (baby, again))
    assert torch.equal(first, second)


def test_first_weights_that_are_asked_for() -> None:
    assert Recipe().initializer_range == pytest.approx(math.sqrt(2 / (5 * 96)))
    assert Recipe(init_std=0.02).initializer_range == 0.02
    assert Recipe(init_std=0.0).initializer_range == 0.0  # zero is an answer, not a missing one


@pytest.mark.parametrize(("steps", "validations"), [(801, 4), (2, 4), (8, 0)])
def test_the_last_validation_is_at_the_end(steps: int, validations: int) -> None:
    with pytest.raises(ValueError, match="must divide steps"):
        Recipe(steps=steps, validations=validations)
