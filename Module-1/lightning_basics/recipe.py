"""What both training loops of this module share: the recipe, the optimiser, the schedule and the order of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset


@dataclass(frozen=True)
class Recipe:
    """Everything about a training run but the model and the data. The names are Lightning's where it has one.

    Attributes:
        max_steps: optimiser steps.
        batch_size: lines in a batch; a step sees `batch_size * accumulate_grad_batches` of them.
        accumulate_grad_batches: batches whose gradients are added up before a step.
        learning_rate: its peak, after the warm-up.
        warmup_steps: optimiser steps of linear warm-up; a cosine to zero follows.
        weight_decay: decoupled decay (AdamW).
        gradient_clip_val: largest L2 norm of the gradient of all parameters together.
        val_check_interval: training batches between two validations.
        patience: validations without a better loss after which the run stops.
        precision: "32-true" or "bf16-mixed", in Lightning's words.
        seed: decides the order of the data.

    Raises:
        ValueError: for values no run can have.
    """

    max_steps: int = 500
    batch_size: int = 64
    accumulate_grad_batches: int = 1
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    gradient_clip_val: float = 1.0
    val_check_interval: int = 100
    patience: int = 3
    precision: str = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "accumulate_grad_batches", "val_check_interval", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.warmup_steps < self.max_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps}: must be in [0, max_steps={self.max_steps})")
        if self.learning_rate <= 0 or self.gradient_clip_val <= 0 or self.weight_decay < 0:
            raise ValueError("learning_rate and gradient_clip_val must be above 0, weight_decay at least 0")
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"precision={self.precision!r}: use '32-true' or 'bf16-mixed'")


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """The share of the peak learning rate at optimiser step `step` (from 0): linear warm-up, then a cosine to zero.

    The first step already learns: its factor is `1 / warmup_steps`, not 0.
    """
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.max_steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(model: nn.Module, recipe: Recipe) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with the recipe's schedule, to be stepped once per optimiser step. Matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))


class ShuffledBatches(Sampler[list[int]]):
    """Batches of indices whose order depends on the seed and the epoch alone, so that any loop can be resumed in it.

    Lightning calls `set_epoch` by itself before each epoch. The last, incomplete batch is dropped.

    Args:
        num_samples: size of the data set.
        batch_size: indices in a batch.
        seed: another seed, another order.

    Raises:
        ValueError: when there is not one full batch.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= num_samples:
            raise ValueError(f"batch_size={batch_size}: must be in [1, {num_samples}], the number of samples")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        # A seed made of both numbers: seed + epoch would give run 1's second epoch to run 2 as its first.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size]


def train_loader(inputs: Int[Tensor, "lines context"], labels: Int[Tensor, " lines"], recipe: Recipe) -> DataLoader:
    """Shuffled batches `(inputs, labels)`, cut out of the two tensors by index, without a copy per line."""
    batches = ShuffledBatches(len(inputs), recipe.batch_size, recipe.seed)
    # batch_size=None: the sampler's lists of indices go to the data set whole. The generator keeps the loader from
    # drawing its worker seed from the global one, which would shift every dropout mask after it.
    return DataLoader(
        TensorDataset(inputs, labels), sampler=batches, batch_size=None, generator=torch.Generator().manual_seed(0)
    )


def val_loader(inputs: Int[Tensor, "lines context"], labels: Int[Tensor, " lines"]) -> DataLoader:
    """Batches of 500 in the data's own order."""
    return DataLoader(TensorDataset(inputs, labels), batch_size=500, generator=torch.Generator().manual_seed(0))
