"""What all contenders of a race train: a model, each rank's rows, and how it computes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from llm_core.config import GPTConfig
from llm_core.costs.counts import CONFIGS
from llm_core.fast import fast
from llm_core.losses import causal_loss
from llm_core.model import GPT
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """What is trained, the same for all.

    Attributes:
        model: a name of Module 3's ladder.
        rows: of a rank's batch.
        time: positions of a row.
        precision: "fp32"; "bf16-mixed", autocast; "bf16-master", FSDP2's policy of 16 bits.
        checkpointing: keep each block's input only.
        device: "cpu" or "cuda".

    Raises:
        ValueError: for what is unknown or cannot be.
    """

    model: str
    rows: int
    time: int
    precision: str = "fp32"
    checkpointing: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.model not in CONFIGS:
            raise ValueError(f"no model {self.model!r}; take one of {', '.join(CONFIGS)}")
        longest = self.config.max_position_embeddings
        if self.rows < 1 or not 2 <= self.time <= longest:
            raise ValueError(f"rows={self.rows}, time={self.time}: take 1 row or more, and 2 to {longest} positions")
        if self.precision not in ("fp32", "bf16-mixed", "bf16-master"):
            raise ValueError(f"precision={self.precision!r} is none of fp32, bf16-mixed, bf16-master")

    @property
    def config(self) -> GPTConfig:
        """Sizes of the model."""
        return CONFIGS[self.model]

    def build_model(self) -> GPT:
        """The model with the weights that every rank begins with."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = GPT(self.config)
        fast(model)  # as BabyGPT does
        if self.checkpointing:
            from llm_scale.trainer.model import checkpoint_blocks

            checkpoint_blocks(model)
        return model

    def batches(self) -> list[Tensor]:
        """Four batches of random token ids, (rows, time), others on each rank: they do not change a step's time."""
        draw = torch.Generator().manual_seed(1 + dist.get_rank())
        shape = (self.rows, self.time)
        return [torch.randint(self.config.vocab_size, shape, generator=draw).to(self.device) for _ in range(4)]

    def mean_loss(self, model: Any, ids: Tensor) -> Tensor:
        """Of predicting each token from those before it."""
        mixed = self.precision == "bf16-mixed"
        with torch.autocast(self.device, dtype=torch.bfloat16) if mixed else contextlib.nullcontext():
            total, targets = causal_loss(model(ids).logits, ids)
            return total / targets
