"""BabyGPT, trained on the text from nothing."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llm_core.babygpt import BabyGPT
from llm_core.config import GPTConfig
from llm_core.costs.counts import num_parameters
from llm_core.model import GPT
from llm_core.store.registry import load_model
from llm_data.datamodule import LLMDataModule
from llm_serve.quantization.perplexity import row_losses

from course import check
from llm_ops.way.data import language_data
from llm_ops.way.programs import run as run_program
from llm_ops.way.settings import CONTEXT, CORPUS, HIDDEN, INIT_STD, LAYERS, TOKENIZER
from llm_ops.way.stage import Made, Place

ROWS = 32  # of validation that are looked at


def run(place: Place) -> Made:
    """The stage."""
    folder, settings = place.folder("train"), place.settings
    data = language_data(place)
    data.prepare_data()
    data.setup()
    config = GPTConfig(
        data.vocab_size, HIDDEN, num_hidden_layers=LAYERS, max_position_embeddings=CONTEXT, initializer_range=INIT_STD
    )
    rows = validation_rows(data)
    untrained = _untrained(config, settings.seed, rows)
    fitted = run_program(
        place.root, "babygpt", "fit",
        seed_everything=settings.seed, run__folder=folder / "run", run__checkpoint_every=settings.train_steps // 8,
        ckpt_path="last", data__seed=settings.seed, data__corpus=CORPUS, data__tokenizer=TOKENIZER,
        data__context=CONTEXT, data__batch_size=8,
        data__cache=place.folder("data") / "cache", data__progress="false", model__config__hidden_size=HIDDEN,
        model__config__num_hidden_layers=LAYERS, model__config__max_position_embeddings=CONTEXT,
        model__config__initializer_range=INIT_STD, model__learning_rate=5e-3,
        model__warmup_steps=settings.train_steps // 20, trainer__max_steps=settings.train_steps,
        trainer__val_check_interval=settings.train_steps // (4 if settings.learns else 1),
        trainer__limit_val_batches=1.0 if settings.learns else 8,
    )  # fmt: skip
    shutil.rmtree(folder / "model", ignore_errors=True)
    exported = run_program(place.root, "babygpt", "export", folder / "run", folder / "model")
    model, _ = load_model(folder / "model")
    assert isinstance(model, GPT)
    check.equal("weights, counted and by the formula", sum(each.numel() for each in model.parameters()),
                num_parameters(config))  # fmt: skip
    val_loss, unigrams = float(row_losses(model, rows).mean()), unigram_loss(data, rows)
    check.holds("a token is guessed better than by its frequency", val_loss < unigrams,
                f"{val_loss:.3f} nats against {unigrams:.3f}")  # fmt: skip
    curves = {name: scalars(folder / "run", name) for name in ("train_loss", "val_loss")}
    facts = {
        "parameters": num_parameters(config), "untrained_loss": untrained, "val_loss": val_loss,
        "unigram_loss": unigrams, "steps": settings.train_steps,
    }  # fmt: skip
    return Made(("model",), facts, (fitted, exported), {"curves": curves})


def validation_rows(data: LLMDataModule) -> torch.Tensor:
    """The first whole rows of validation documents, (rows, 64)."""
    tokens = data.tokens("val")
    found = [tokens[number][:64].tolist() for number in range(len(tokens)) if len(tokens[number]) >= 64]
    return torch.tensor(found[:ROWS])


def _untrained(config: GPTConfig, seed: int, rows: torch.Tensor) -> float:
    """The loss before a step, beside what it must be: all tokens alike likely, and the spread of the first logits."""
    torch.manual_seed(seed)
    first = float(row_losses(BabyGPT(config).model.eval(), rows).mean())
    # RMSNorm gives the head a vector of HIDDEN numbers of size 1, so that a logit has the variance HIDDEN x std^2; of
    # normal logits the logarithm of the mean exponential is half of that above 0.
    expected = math.log(config.vocab_size) + HIDDEN * INIT_STD**2 / 2
    # The logits are not quite normal: at seed 0 it is 0.3% off. Other seeds were not tried, hence the room.
    check.predicted("loss of the untrained model", expected, first, within=0.03, unit="nats")
    return first


def unigram_loss(data: LLMDataModule, rows: torch.Tensor) -> float:
    """Nats a token of rows, each token coded by its frequency in the training text, one added to every count."""
    tokens = data.tokens("train")
    every = np.concatenate([tokens[number] for number in range(len(tokens))])
    counts = 1 + np.bincount(every, minlength=data.vocab_size)
    return float(-np.log(counts / counts.sum())[rows[:, 1:].numpy()].mean())


def scalars(folder: Path, name: str) -> list[list[float]]:
    """(step, value) of what a run wrote for TensorBoard, each step once: a run that was killed wrote some twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Any = EventAccumulator(str(folder)).Reload()
    if name not in found.Tags()["scalars"]:
        return []
    return [
        [int(step), value] for step, value in sorted({each.step: each.value for each in found.Scalars(name)}.items())
    ]
