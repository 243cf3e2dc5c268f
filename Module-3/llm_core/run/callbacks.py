"""When a run of `babygpt` validates, and what it keeps: `last.ckpt` and `best.ckpt`, always between two steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint


class ValidateEverySteps(pl.Callback):
    """Validation after every so many optimiser steps, across epochs.

    Lightning counts batches: with accumulated gradients a validation would fall inside a step, and a checkpoint that is
    made there has lost the gradients of the step's first batches.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self._seen = steps, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen = trainer.global_step
        self._set(trainer, due=False)  # a checkpoint is made after its step's validation

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        stepped, self._seen = trainer.global_step != self._seen, trainer.global_step
        self._set(trainer, due=stepped and trainer.global_step % self.steps == 0)

    @staticmethod
    def _set(trainer: pl.Trainer, due: bool) -> None:
        # Lightning validates where the number of batches so far is a multiple of this.
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        trainer.val_check_batch = max(batches, 1) if due else batches + 1


class RunCheckpoints(Checkpoint):
    """Writes a run's two checkpoints, in the folder that it is given and nowhere else, and deletes nothing.

    Where a step is followed by a validation, its `last.ckpt` comes after it: a run killed in the validation repeats it.
    The last step of a run has one too.
    The state holds a number and no path: a checkpoint may come from anybody, and a run's folder may be moved.

    Args:
        folder: of both files.
        every: steps between two `last.ckpt`.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.best_val_loss = math.inf
        self.last_step: int | None = None
        self._seen, self._late = 0, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen, self._late = trainer.global_step, False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        stepped, self._seen = trainer.global_step != self._seen, trainer.global_step
        if stepped and (trainer.global_step % self.every == 0 or self._is_at_its_end(trainer)):
            fetcher: Any = trainer.fit_loop._data_fetcher
            self._late = trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
            if not self._late:
                self.save_last(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write `last.ckpt`, unless it is of this step already, or the run stopped inside a step, as after `max_time`:
        the gradients of that step's first batches are in no checkpoint."""
        module: Any = trainer.lightning_module
        if self.last_step != trainer.global_step and not module.inside_a_step:
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.last_step = trainer.global_step

    @staticmethod
    def _is_at_its_end(trainer: pl.Trainer) -> bool:
        ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 == trainer.max_epochs
        return trainer.global_step == trainer.max_steps or (ends_epoch and last_epoch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        loss = float(trainer.callback_metrics.get("val_loss", math.inf))
        if loss < self.best_val_loss:
            self.best_val_loss = loss
            trainer.save_checkpoint(self.folder / "best.ckpt")
        if self._late:
            self._late = False
            self.save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best_val_loss": self.best_val_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Without its file the best is one of another folder, and this one has none yet.
        if (self.folder / "best.ckpt").is_file():
            self.best_val_loss = float(state_dict["best_val_loss"])
