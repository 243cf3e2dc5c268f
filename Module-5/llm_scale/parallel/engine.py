"""DeepSpeed's interface on the three stages by hand: a configuration, and an engine with backward pass and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm_scale.parallel.zero1 import Zero1
from llm_scale.parallel.zero2 import Zero2
from llm_scale.parallel.zero3 import Zero3, blocks_of

KEYS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "zero_optimization",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a configuration says.

    Attributes:
        micro_batch: rows of a rank in one forward pass.
        accumulate: forward passes a step.
        clipping: the norm that gradients are clipped at; 0 for no clipping.
        stage: 1, 2 or 3.
    """

    micro_batch: int
    accumulate: int
    clipping: float
    stage: int


def batch_sizes(whole: int | None, micro: int | None, accumulate: int | None, ranks: int) -> tuple[int, int]:
    """Rows of a rank in a forward pass, and forward passes a step: whole = micro x accumulate x ranks.

    Args:
        whole: rows of a step, over all ranks.
        micro: rows of a rank in a forward pass.
        accumulate: forward passes a step.
        ranks: how many.

    Raises:
        ValueError: when too little is given, or it does not fit together.
    """
    if micro is None:
        if whole is None:
            raise ValueError("give train_batch_size or train_micro_batch_size_per_gpu")
        micro = whole // ((accumulate or 1) * ranks)
    if accumulate is None:
        accumulate = 1 if whole is None or micro < 1 else max(1, whole // (micro * ranks))
    if micro < 1 or (whole is not None and whole != micro * accumulate * ranks):
        raise ValueError(
            f"train_batch_size={whole} is not {micro} rows x {accumulate} passes x {ranks} ranks; leave one of them out"
        )
    return micro, accumulate


def read_config(config: Mapping[str, Any], ranks: int) -> Settings:
    """A configuration in DeepSpeed's words.

    Raises:
        ValueError: for a key that is not known here, or values that cannot be.
    """
    unknown = sorted(set(config) - set(KEYS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not known here; known are {', '.join(KEYS)}")
    whole, micro, accumulate = (config.get(key) for key in KEYS[:3])
    micro, accumulate = batch_sizes(whole, micro, accumulate, ranks)
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2, 3):
        raise ValueError(f"zero_optimization.stage={stage}: stages 1, 2 and 3 are here; DataParallel is stage 0")
    return Settings(micro, accumulate, float(config.get("gradient_clipping", 0.0)), stage)


class Engine:
    """The inner half of a training loop behind three calls: `engine(...)`, `engine.backward(loss)`, `engine.step()`.

    Every call of `step` belongs to one backward pass; the weights change at the last one of a step.

    Args:
        model: with blocks in a `ModuleList`.
        optimizer: makes an element-wise optimiser of torch; `options` are its arguments.
        config: in DeepSpeed's words, see `read_config`.

    Raises:
        ValueError: see `read_config`.
    """

    def __init__(
        self, model: nn.Module, optimizer: type[torch.optim.Optimizer], config: Mapping[str, Any], **options: Any
    ) -> None:  # fmt: skip
        self.settings, self.model = read_config(config, dist.get_world_size()), model
        make: dict[int, Callable[[], Any]] = {
            1: lambda: Zero1(model, optimizer, **options),
            2: lambda: Zero2(model, optimizer, **options),
            3: lambda: Zero3(model, blocks_of(model), optimizer, **options),
        }
        self.runner, self.passes = make[self.settings.stage](), 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the mean over the step's passes: the division is here, and not the caller's."""
        (loss / self.settings.accumulate).backward()
        self.passes += 1

    def step(self) -> None:
        """Reduce, clip and step at the last pass of a step; nothing at the others."""
        if self.passes % self.settings.accumulate:
            return
        if self.settings.stage == 1:
            self.runner.reduce()
        if self.settings.clipping:
            self.runner.clip_grad_norm_(self.settings.clipping)
        self.runner.step()
