"""The small GPT that lessons share: trained once, in a minute or two, and kept in the course's cache."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from llm_data.datamodule import LLMDataModule
from llm_data.text.corpora import load_corpus
from llm_data.text.parsing import parses as parses
from llm_data.workspace import cache_folder, digest, locked
from safetensors.torch import load_file, save_file

from course.lightning_tools import ProgressLine, quiet
from llm_core.babygpt import BabyGPT
from llm_core.model import GPT, GPTConfig
from llm_core.store.registry import save_model

CODE = ("small_model", "config", "masks", "model", "babygpt")  # another model is trained when one of these changes


@dataclass(frozen=True)
class Recipe:
    """A training run of a few minutes on one core.

    Args:
        corpus: for `LLMDataModule`.
        tokenizer: likewise.
        context: tokens of a row, and the model's `max_position_embeddings`.
        batch_size: rows of a step.
        steps: of training.
        learning_rate: at its highest.
        hidden_size: width of the model.
        layers: its blocks.
        keep: steps after which the weights are kept too, to look back at.
        init_std: standard deviation of the first weights; None takes sqrt(2 / (5 hidden_size)).
        validations: how often the validation loss is taken, evenly over the run; the last time is at its end.
        seed: of weights and order.

    Raises:
        ValueError: when the validations do not divide the steps: the last would not be at the end.
    """

    corpus: str = "python-functions"
    tokenizer: str = "bpe-1024"
    context: int = 128
    batch_size: int = 8
    steps: int = 800
    learning_rate: float = 5e-3
    hidden_size: int = 96
    layers: int = 4
    keep: tuple[int, ...] = (0, 50, 200)
    init_std: float | None = None
    validations: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.validations < 1 or self.steps % self.validations:
            wrong = f"validations={self.validations} must divide steps={self.steps}"
            raise ValueError(f"{wrong}, so that the last is at the end; set validations=1")

    @property
    def initializer_range(self) -> float:
        """The standard deviation of the first weights that the model gets."""
        return math.sqrt(2 / (5 * self.hidden_size)) if self.init_std is None else self.init_std


@dataclass(frozen=True)
class Baby:
    """A trained model with all that belongs to it.

    Attributes:
        model: in evaluation mode.
        data: its `LLMDataModule`, set up.
        losses: of each training step, in nats per token.
        val_losses: by step, in nats per token.
        folder: the same model as a folder of transformers.
        earlier: the model after the steps that were to be kept.
    """

    model: GPT
    data: LLMDataModule
    losses: list[float]
    val_losses: dict[int, float]
    folder: Path
    earlier: dict[int, GPT]

    @property
    def val_loss(self) -> float:
        """At the end, in nats per token."""
        return self.val_losses[max(self.val_losses)]


class Keep(pl.Callback):
    """Keeps each step's loss, the validation losses, and copies of the weights after some steps."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps, self.losses = steps, list[float]()
        self.val_losses: dict[int, float] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step in self.steps:
            model: Any = pl_module.model
            self.weights[trainer.global_step] = {
                name: values.detach().cpu().clone() for name, values in model.state_dict().items()
            }

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        module: Any = pl_module
        self.losses.append(module.step_loss)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.val_losses[trainer.global_step] = trainer.callback_metrics["val_loss"].item()


def train_baby(recipe: Recipe = Recipe(), accelerator: str = "cpu") -> Baby:
    """Train after a recipe, or take what an earlier call left in the cache.

    Args:
        recipe: what to train, on what, for how long.
        accelerator: for the Trainer. The default makes the same model on every machine that has the same text.
    """
    quiet()
    data = _data(recipe)
    code = [Path(__file__).with_name(f"{name}.py").read_text("utf-8") for name in CODE]
    folder = cache_folder() / "models" / digest(recipe, load_corpus(recipe.corpus).fingerprint, code, accelerator)
    with locked(folder):
        if not (folder / "history.json").is_file():
            # With data of its own: what is given back begins at the first batch, whether the model was there or not.
            _train(recipe, _data(recipe), folder, accelerator)
    history = json.loads((folder / "history.json").read_text("utf-8"))
    config = GPTConfig(**history["config"])
    models = {}
    for step in (*recipe.keep, recipe.steps):
        models[step] = GPT(config).eval()
        models[step].load_state_dict(load_file(folder / f"step-{step}.safetensors"))
    last = models.pop(recipe.steps)
    val_losses = {int(step): loss for step, loss in history["val_losses"].items()}
    return Baby(last, data, history["losses"], val_losses, folder / "transformers", models)


def _data(recipe: Recipe) -> LLMDataModule:
    data = LLMDataModule(
        recipe.corpus, recipe.tokenizer, context=recipe.context, batch_size=recipe.batch_size, progress=False
    )
    data.prepare_data()
    data.setup()
    return data


def _train(recipe: Recipe, data: LLMDataModule, folder: Path, accelerator: str) -> None:
    config = GPTConfig(
        data.vocab_size, recipe.hidden_size, num_hidden_layers=recipe.layers, max_position_embeddings=recipe.context,
        initializer_range=recipe.initializer_range,
    )  # fmt: skip
    pl.seed_everything(recipe.seed, verbose=False)
    module = BabyGPT(config, learning_rate=recipe.learning_rate, warmup_steps=recipe.steps // 20)
    keep = Keep(recipe.keep)
    trainer = pl.Trainer(
        max_steps=recipe.steps, accelerator=accelerator, devices=1, gradient_clip_val=1.0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        val_check_interval=recipe.steps // recipe.validations, check_val_every_n_epoch=None,
        callbacks=[keep, ProgressLine(recipe.corpus)],
    )  # fmt: skip
    trainer.fit(module, data)
    model: Any = module.model.cpu().eval()
    keep.weights[recipe.steps] = model.state_dict()
    for step, weights in keep.weights.items():
        untied = {name: values.clone() for name, values in weights.items()}  # safetensors keeps no shared memory
        save_file(untied, folder / f"step-{step}.safetensors")
    save_model(model, data.tokenizer, folder / "transformers")
    history = {
        "config": asdict(config), "losses": keep.losses, "val_losses": keep.val_losses
    }  # fmt: skip
    (folder / "history.json").write_text(json.dumps(history), "utf-8")
