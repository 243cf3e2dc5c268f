"""Fine-tuning seen from both sides: what a model learns of a new domain, and what it loses of the old one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from llm_data.datamodule import LLMDataModule
from llm_data.measures import bits_per_byte
from llm_data.rows.collate import Batch, make_batch
from llm_data.rows.loader import StatefulLoader
from torch import nn
from torch.utils.data import DataLoader

from llm_core.babygpt import BabyGPT

# For a Trainer of a short run: nothing drawn, nothing written.
SILENT: dict[str, Any] = {
    "logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False
}  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """Validation rows of a domain, always the same ones, so that two measurements differ by the model alone.

    Attributes:
        batch: the rows.
        bytes_per_token: of the whole validation side.
    """

    batch: Batch
    bytes_per_token: float


def held_out(data: LLMDataModule, rows: int = 24) -> HeldOut:
    """`rows` validation rows, spread evenly: a plan like best fit puts long documents first.

    Raises:
        ValueError: when there are not so many.
    """
    table = data.rows("val")
    if not 1 <= rows <= len(table):
        raise ValueError(f"rows={rows}: {data.corpus_name} has {len(table)} validation rows; ask for 1 to {len(table)}")
    chosen = np.linspace(0, len(table) - 1, rows).astype(int)
    return HeldOut(make_batch(table, chosen), data.bytes_per_token("val"))


@torch.no_grad()
def bits(model: BabyGPT | nn.Module, text: HeldOut) -> float:
    """Bits per byte of held-out rows, in evaluation mode; afterwards every part is in the mode it was in before."""
    modes = {part: part.training for part in model.modules()}  # before BabyGPT, which sets the mode for training
    module = model if isinstance(model, BabyGPT) else BabyGPT(model)
    device = next(module.parameters()).device
    total, targets = module.eval().loss({name: values.to(device) for name, values in text.batch.items()})
    for part, mode in modes.items():
        part.training = mode
    return bits_per_byte(total.item() / int(targets), 1, text.bytes_per_token)


class Watch(pl.Callback):
    """Measures each text after some steps of a run, the 0th included.

    Attributes:
        points: for each measurement the step, and the bits per byte of each text under its name.
    """

    def __init__(self, texts: Mapping[str, HeldOut], steps: Collection[int]) -> None:
        self.texts, self.steps = texts, steps
        self.points: list[dict[str, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure(0, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._measure(trainer.global_step, pl_module)

    def _measure(self, step: int, module: Any) -> None:
        if step in self.steps:
            self.points.append({"step": step, **{name: bits(module, text) for name, text in self.texts.items()}})


class Replay:
    """Batches in which rows of the old domain stand behind those of the new one. Robins 1995 (rehearsal)."""

    def __init__(self, new: Iterable[Batch], old: Iterable[Batch]) -> None:
        self.new, self.old = new, old

    def __iter__(self) -> Iterator[Batch]:
        for new, old in zip(self.new, self.old, strict=False):
            yield {name: torch.cat([new[name], old[name]]) for name in new}


def batches(data: LLMDataModule, rows: int, seed: int, replay: LLMDataModule | None = None, old_rows: int = 0) -> Any:
    """Training batches of `rows` rows in the order of `seed`, `old_rows` of them from `replay`.

    Raises:
        ValueError: when no row of the new domain is left, or the old rows have no source.
    """
    if not 0 <= old_rows < rows:
        raise ValueError(f"old_rows={old_rows} of {rows}: at least one row must be new; lower it")
    if bool(old_rows) != (replay is not None):
        raise ValueError(
            f"old_rows={old_rows} with replay {'given' if replay is not None else 'left out'}: give both or none"
        )
    new = StatefulLoader(data.rows("train"), rows - old_rows, seed=seed)
    return new if replay is None else Replay(new, StatefulLoader(replay.rows("train"), old_rows, seed=seed))


def fine_tune(
    model: nn.Module, train: Iterable[Batch], texts: Mapping[str, HeldOut], steps: int = 80,
    learning_rate: float = 1e-3, measure_at: Collection[int] | None = None, accelerator: str = "cpu", seed: int = 0,
) -> tuple[nn.Module, list[dict[str, float]]]:  # fmt: skip
    """Train a copy of a model with `BabyGPT`, and measure on the way.

    Args:
        model: any causal language model; it is left as it is.
        train: batches; taken again from the start when they end.
        texts: what to measure, under the names of the result.
        steps: of training; a tenth of them warms up.
        learning_rate: at its highest.
        measure_at: after which steps; by default at the start and at the end.
        accelerator: for the Trainer.
        seed: of the dropout.

    Returns:
        The trained copy, on the CPU and in evaluation mode; `Watch.points`.
    """
    pl.seed_everything(seed, verbose=False)
    module = BabyGPT(copy.deepcopy(model), learning_rate=learning_rate, warmup_steps=steps // 10)
    watch = Watch(texts, (0, steps) if measure_at is None else measure_at)
    trainer = pl.Trainer(
        max_steps=steps, accelerator=accelerator, devices=1, gradient_clip_val=1.0, callbacks=[watch],
        limit_val_batches=0, **SILENT,
    )  # fmt: skip
    fit(trainer, module, train)
    return module.model.cpu().eval(), watch.points


def fit(trainer: pl.Trainer, module: BabyGPT, train: Iterable[Batch]) -> None:
    """`trainer.fit` on any batches, without its warning that nothing validates."""
    loader: Any = train
    if isinstance(train, (list, tuple)):  # the Trainer would take each batch for a loader
        given: Any = train
        loader = DataLoader(given, batch_size=None)
    with warnings.catch_warnings():  # Watch takes the place of validation
        warnings.filterwarnings("ignore", message=".*no `val_dataloader`.*")
        trainer.fit(module, loader)
