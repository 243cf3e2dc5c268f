"""What every notebook that trains through Lightning needs: silence, and a progress line."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytorch_lightning as pl

from course.progress import Line


def quiet() -> None:
    """Turn off Lightning's chatter about devices and workers, and warnings that no reader can act on."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # transformers' schedules import bitsandbytes, which tells of a faster kernel for 4-bit weights on some CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # torch's pytree warns Lightning about a class of its own; the message is the only handle.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
    # Notebooks load data in the kernel's own process: workers differ by platform, and Module 2 measures when they pay.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # On a machine that has Slurm: a lesson's run is not meant for its queue.
    warnings.filterwarnings("ignore", message="The `srun` command is available.*")


class ProgressLine(pl.Callback):
    """Lightning's steps on one line: the step, their total, and the metrics logged with `prog_bar=True`.

    Use it with `Trainer(enable_progress_bar=False, callbacks=[ProgressLine()])`: Lightning's own bar floods
    saved outputs, and can stall a notebook that runs without a browser (jupyter/nbclient#312).
    """

    def __init__(self, label: str = "training") -> None:
        self.label = label
        self._line: Line | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            steps = trainer.estimated_stepping_batches
            self._line = Line(self.label, int(steps) if steps != float("inf") else None)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._line is not None:
            self._line.update(trainer.global_step, self._metrics(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._line is not None:
            self._line.update(trainer.global_step, self._metrics(trainer))
            self._line.close()
            self._line = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, error: BaseException) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    @staticmethod
    def _metrics(trainer: pl.Trainer) -> dict[str, float]:
        return {key: float(value) for key, value in trainer.progress_bar_metrics.items() if key != "v_num"}
