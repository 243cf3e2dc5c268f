"""What a run of any strategy keeps: each step's loss in a file, checkpoints by step, and a table at its end."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from llm_core.run.callbacks import RunCheckpoints

from llm_scale.trainer.checkpoints import checkpoints_in, name_of
from llm_scale.trainer.checks import Shares
from llm_scale.trainer.settings import Parallel


class LossLog(pl.Callback):
    """Writes a line of JSON a step: `step`, `loss` in nats over all targets of all ranks, `grad_norm` before clipping,
    `learning_rate` of the next step, `seconds`. Rank 0 writes; a run that goes on keeps the lines up to where it goes
    on from.

    Args:
        path: of the file; None keeps `lines` alone.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path, self.lines = None if path is None else Path(path), list[dict[str, float]]()
        self._clock, self._seen = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock, self._seen = time.perf_counter(), trainer.global_step
        if self.path is None or not trainer.is_global_zero:
            return
        before = self.path.read_text("utf-8").splitlines() if self.path.is_file() and self._seen else []
        kept = [line for line in before if json.loads(line)["step"] <= self._seen]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._seen:  # inside a step
            return
        module: Any = pl_module
        now, before, self._seen = time.perf_counter(), self._clock, trainer.global_step
        self._clock = now
        self.lines.append({
            "step": trainer.global_step, "loss": module.step_loss, "grad_norm": float(module.step_norm),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"], "seconds": now - before,
        })  # fmt: skip
        if self.path is not None and trainer.is_global_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")


class StepCheckpoints(RunCheckpoints):
    """Sharded checkpoints of a run: `step-00000100` and so on, of which the newest few stay, and `best.ckpt`.

    Args:
        folder: of all of them.
        every: steps from one to the next.
        keep: how many stay.
    """

    def __init__(self, folder: Path, every: int, keep: int = 2) -> None:
        super().__init__(folder, every)
        self.keep = keep

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint of this step, unless it is there, or the run stopped inside a step."""
        module: Any = trainer.lightning_module
        if self.last_step == trainer.global_step or module.inside_a_step:
            return
        trainer.save_checkpoint(self.folder / name_of(trainer.global_step))
        self.last_step = trainer.global_step
        if trainer.is_global_zero:
            for path in checkpoints_in(self.folder)[self.keep :]:
                shutil.rmtree(path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (self.folder / "best.ckpt").is_dir():
            self.best_val_loss = float(state_dict["best_val_loss"])


class EndedAtOnce(pl.Callback):
    """Lets SIGTERM end a rank of torchrun while it trains, whatever it waits for: so a failed rank's peers are stopped.

    Lightning's own answer is a broadcast from inside the signal's handler: it gets among the collectives of a step, and
    waits for ranks that are gone. A checkpoint needs no last word: it is whole, or not there. Under Slurm alone
    Lightning's answer stays.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if TorchElasticEnvironment.detect():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning sets back what was before it, at the end


def table(parallel: Parallel, log: LossLog, shares: Shares) -> str:
    """A finished run in a few lines: what was asked for, what a rank held, what came out."""
    lines = log.lines
    seconds = sorted(line["seconds"] for line in lines[1:]) or [math.nan]  # the first step also sets things up
    rows = [
        ("strategy", parallel.strategy),
        ("ranks", f"{parallel.ranks} on {parallel.device}"),
        ("precision", parallel.precision),
        ("activation checkpointing", "each block" if parallel.activation_checkpointing else "no"),
        ("weights a rank", " ".join(f"{share:.1%}" for share in shares.weights) or "not measured"),
        ("optimiser states a rank", " ".join(f"{share:.1%}" for share in shares.states) or "not measured"),
    ]
    if lines:
        rows += [
            ("steps", f"{lines[0]['step']:.0f} to {lines[-1]['step']:.0f}"),
            ("loss", f"{lines[0]['loss']:.4f} to {lines[-1]['loss']:.4f} nats"),
            ("seconds a step, median", f"{seconds[len(seconds) // 2]:.3f}"),
        ]
    if parallel.device == "cuda":
        rows.append(("most memory, rank 0", f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
