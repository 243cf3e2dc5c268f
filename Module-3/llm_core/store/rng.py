"""The states of the random number generators, which make a resumed run the same run."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed


def random_state() -> dict[str, Any]:
    """The state of every generator that a training step may draw from: Python's, NumPy's, torch's on CPU and device.

    Plain numbers and tensors only, so that a checkpoint loads with `weights_only=True`.
    """
    version, numbers, gauss = random.getstate()
    drawn: Any = np.random.get_state(legacy=False)
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": {**drawn, "state": {"key": drawn["state"]["key"].tolist(), "pos": drawn["state"]["pos"]}},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on drawing where `random_state` was taken. A device that is not here is left out."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


class RandomState(pl.Callback):
    """Saves each rank's `random_state` with a checkpoint, and sets it again before the first step of a resumed run.

    On another number of ranks there is no state to go on with: each rank is seeded from the step and its own number,
    so that no two draw the same.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None

    def on_save_checkpoint(self, trainer: pl.Trainer, _: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [random_state()]
        if self._restored is not None:  # no step was taken since: what was drawn meanwhile is not of the run
            states = self._restored
        elif trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, random_state())
        checkpoint["random_state"] = states

    def on_load_checkpoint(self, trainer: pl.Trainer, _: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint.get("random_state")
        if self._restored is not None:  # what is damaged is to fail now, while the checkpoint is known
            now = random_state()
            for state in self._restored:
                set_random_state(state)
            set_random_state(now)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._restored is None:
            return
        # Set as late as this: making loaders and a first validation may draw numbers too.
        if len(self._restored) == trainer.world_size:
            set_random_state(self._restored[trainer.global_rank])
        else:
            pl.seed_everything(trainer.global_step * 1009 + trainer.global_rank, verbose=False)
        self._restored = None
