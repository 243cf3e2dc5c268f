"""What makes a resumed run the same run: the states of the random number generators, and checkpoints that are whole."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed
from lightning_fabric.plugins import TorchCheckpointIO

from course.files import write_whole


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


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole or not there: written beside their place, then renamed.

    A run killed while it writes keeps the checkpoint before. (Lightning's own writes to the system's temporary folder
    and moves, through fsspec; between two file systems a move is a copy, which a kill cuts short.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        target = Path(path)
        try:
            write_whole(target, lambda part: _save(checkpoint, part))
        except (OSError, RuntimeError) as error:  # on a full disk torch's writer gives the second
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            reason = f"{target} cannot be written ({cause.strerror}); make room, and go on from the checkpoint before"
            raise OSError(reason) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """A checkpoint's values; never objects, whose making can run code."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # an OSError of a file of ours; torch's own loses what the system said
        torch.save(checkpoint, file)


def refuse_other_steps(before: Mapping[str, int] | None, now: Mapping[str, int] | None, epochs: bool) -> None:
    """Raise a ValueError for a run that goes on with steps of another number of rows, where that is more than it says.

    Lightning takes the length of every epoch, and of a schedule that is counted in epochs, from what is left of the
    first one; and where several batches make a step it counts them from the beginning of an epoch.

    Args:
        before, now: `rows` of a step and `batches` of one; None where the data does not say.
        epochs: whether the run's length is counted in epochs.
    """
    if before is None or now is None or before == now:
        return
    if epochs or before["batches"] > 1 or now["batches"] > 1:
        raise ValueError(
            f"a step had {before['rows']} rows in {before['batches']} batches and would have {now['rows']} in "
            f"{now['batches']}; that can change at a batch a step and with trainer.max_steps only: keep batch size, "
            "accumulation and devices"
        )


def settle_progress(checkpoint: dict[str, Any]) -> None:
    """Say of Lightning's loops where the loader stands: it is the loader's rows that a run has seen.

    Lightning notes how far a hook of its own had come, and reads an epoch's end that was saved in one hook and gone on
    from twice as another number of epochs. Here a resumed run begins between two batches: with the next epoch, or
    inside one behind so many batches.
    """
    place = checkpoint.get("LLMDataModule", {}).get("train")
    if not place:
        return
    loops = checkpoint["loops"]["fit_loop"]
    epoch, batches = int(place["epoch"]), int(place["steps"])
    inside = int(batches > 0)
    for counts in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        counts.update(ready=epoch + inside, started=epoch + inside, processed=epoch, completed=epoch)
    progress = loops["epoch_loop.batch_progress"]
    total = progress["total"]["ready"]
    progress["total"].update(ready=total, started=total, processed=total, completed=total)
    progress["current"].update(ready=batches, started=batches, processed=batches, completed=batches)
    progress["is_last_batch"] = False
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["total"], validation["current"]):
        counts.update(ready=0, started=0, processed=0, completed=0)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]
