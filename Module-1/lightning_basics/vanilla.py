"""The training loop of lesson 2, in raw PyTorch, with everything that real training needs done by hand.

Each function is one concern, so that the lesson can count what a concern costs in lines.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from course.progress import Line
from lightning_basics.recipe import Recipe, make_optimizer


@dataclass
class Progress:
    """Where a run stands. It is saved whole in a checkpoint, so it holds numbers and lists of numbers only.

    Attributes:
        step: optimiser steps done.
        batch: training batches done, over all epochs.
        losses: training loss of each batch.
        grad_norms: gradient norm before clipping, one a step.
        learning_rates: learning rate used, one a step.
        validations: (batch, loss, accuracy) of each validation.
        stopped_early: whether the patience ran out.
    """

    step: int = 0
    batch: int = 0
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    validations: list[tuple[int, float, float]] = field(default_factory=list)
    stopped_early: bool = False

    def add_batch(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at batch {self.batch}; lower the learning rate")
        self.losses.append(loss)
        self.batch += 1

    def add_step(self, grad_norm: float, learning_rate: float) -> None:
        self.step += 1
        self.grad_norms.append(grad_norm)
        self.learning_rates.append(learning_rate)


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[None]:
    """The context for the forward pass: bf16 matrix products under "bf16-mixed", nothing under "32-true"."""
    if precision == "bf16-mixed":
        return torch.autocast(device, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def batches_from(loader: DataLoader, batch: int) -> Iterator[tuple[int, Any]]:
    """Yield `(number, batch)` for ever, epoch after epoch, starting behind the first `batch` batches."""
    while True:
        epoch, skip = divmod(batch, len(loader))
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for position, data in enumerate(loader):
            if position >= skip:
                yield batch, data
                batch += 1


def optimizer_step(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, clip: float
) -> tuple[float, float]:
    """Clip, step, clear the gradients, advance the schedule. Returns the norm before clipping and the rate used."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = nn.utils.clip_grad_norm_(parameters, clip)
    learning_rate = optimizer.param_groups[0]["lr"]
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()
    return grad_norm.item(), learning_rate


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    device: str = "cpu",
    precision: str = "32-true",
) -> tuple[float, float]:
    """Mean loss (nats per line) and accuracy. The model is left in the mode it was in.

    Args:
        model: maps inputs to logits.
        batches: pairs of inputs (batch, time) and labels (batch).
        device: where the model is.
        precision: "32-true" or "bf16-mixed".
    """
    was_training = model.training
    model.eval()
    loss_sum = correct = count = 0.0
    for inputs, labels in batches:
        inputs, labels = inputs.to(device), labels.to(device)
        with autocast(device, precision):
            logits: Float[Tensor, "batch classes"] = model(inputs)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(dim=1) == labels).sum().item()
        count += len(labels)
    model.train(was_training)
    return loss_sum / count, correct / count


def save_checkpoint(path: Path, model: nn.Module, optimizer: Any, scheduler: Any, progress: Progress) -> None:
    """Write all that the next step depends on. The file appears whole or not at all."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "progress": vars(progress),
        "cpu_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path, model: nn.Module, optimizer: Any, scheduler: Any) -> Progress:
    """Restore everything that `save_checkpoint` wrote, and return where the run stood.

    Raises:
        FileNotFoundError: when there is no checkpoint at `path`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; start without resume=True")
    state = torch.load(path, map_location="cpu", weights_only=True)  # a GPU's checkpoint loads without a GPU
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["cpu_rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return Progress(**state["progress"])


def out_of_patience(validations: list[tuple[int, float, float]], patience: int) -> bool:
    """Whether the last `patience` validations all failed to beat the best loss before them."""
    losses = [loss for _, loss, _ in validations]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def loss_and_backward(model: nn.Module, batch: Sequence[Tensor], recipe: Recipe, device: str) -> float:
    """Forward, Loss and Backward of one batch. Its share of the step's gradient is added to `grad`."""
    inputs, labels = (tensor.to(device) for tensor in batch)
    with autocast(device, recipe.precision):
        loss = F.cross_entropy(model(inputs), labels)
    (loss / recipe.accumulate_grad_batches).backward()
    return loss.item()


def fit(
    model: nn.Module,
    train: DataLoader,
    val: Iterable[Any],
    recipe: Recipe,
    device: str = "cpu",
    folder: Path | None = None,
    resume: bool = False,
    stop_after: int | None = None,
) -> Progress:
    """Train `model` in place and return the record of the run.

    Args:
        model: maps inputs to logits.
        train, val: batches of `(inputs, labels)`; `train` has a sampler with `set_epoch`.
        recipe: steps, rates, precision and the rest.
        device: "cpu", "cuda" or "mps".
        folder: where `last.pt` and `metrics.jsonl` go, with the step after each validation; None writes nothing.
        resume: go on from `folder/last.pt`.
        stop_after: leave after this many batches as a killed run would, for the resume lesson.

    Raises:
        ValueError: for `resume` without a folder.
        FileNotFoundError: for `resume` without a checkpoint.
        FloatingPointError: when the loss is not finite; the last checkpoint stays.
    """
    if resume and folder is None:
        raise ValueError("resume=True needs the folder of the run to go on with")
    model.to(device).train()
    optimizer, scheduler = make_optimizer(model, recipe)
    progress = load_checkpoint(folder / "last.pt", model, optimizer, scheduler) if resume and folder else Progress()
    checkpoint_due = False
    with contextlib.closing(Line("training", recipe.max_steps)) as line:
        for number, batch in batches_from(train, progress.batch):
            if progress.step >= recipe.max_steps or progress.stopped_early or number == stop_after:
                break
            progress.add_batch(loss_and_backward(model, batch, recipe, device))
            # Counted within the epoch, whose last batch is a step in any case: 0 % accumulate is 0.
            step_ends = progress.batch % len(train) % recipe.accumulate_grad_batches == 0
            if step_ends:
                progress.add_step(*optimizer_step(optimizer, scheduler, recipe.gradient_clip_val))
            if progress.batch % recipe.val_check_interval == 0:
                progress.validations.append((progress.batch, *evaluate(model, val, device, recipe.precision)))
                progress.stopped_early = out_of_patience(progress.validations, recipe.patience)
                checkpoint_due = folder is not None
            # Never in the middle of an accumulation: the gradients so far are not in the file.
            if folder is not None and checkpoint_due and step_ends:
                save_checkpoint(folder / "last.pt", model, optimizer, scheduler, progress)
                log_metrics(folder / "metrics.jsonl", progress)
                checkpoint_due = False
            line.update(progress.step, {"loss": progress.losses[-1]})
    return progress


def log_metrics(path: Path, progress: Progress) -> None:
    """Append the latest numbers as one line of JSON."""
    batch, val_loss, val_accuracy = progress.validations[-1]
    record = {
        "step": progress.step,
        "batch": batch,
        "train_loss": progress.losses[-1],
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "learning_rate": progress.learning_rates[-1],
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
