"""How a run is spread over ranks: what is asked for, and what cannot be. A command reads it before it starts ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from llm_scale.deepspeed_tools import why_not

STRATEGIES = ("single", "ddp", "fsdp", "fsdp1", "deepspeed", "tensor-parallel")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed")
SHARDED = ("fsdp", "fsdp1", "tensor-parallel")  # a rank holds a part of the weights
ZERO_STAGES = (1, 2, 3)
DEVICES = ("auto", "cpu", "gpu")


@dataclass(frozen=True)
class Parallel:
    """How many ranks a run has, and what each of them holds.

    Attributes:
        strategy: "single", one process; "ddp", the whole model on every rank, other rows; "fsdp", a part of weights,
            gradients and optimiser states on every rank, other rows (PyTorch's `fully_shard`); "fsdp1", the same in its
            older form, for GPUs; "deepspeed", ZeRO by that library; "tensor-parallel", a part of every matrix on
            every rank, the same rows.
        devices: ranks of a node.
        nodes: how many there are.
        accelerator: "cpu", "gpu", or "auto" for GPUs where there are any.
        precision: in Lightning's words.
        activation_checkpointing: keep each block's input alone, and compute the block again in the backward pass.
        zero_stage: of deepspeed. At 1 a rank holds a part of the optimiser's states, at 2 of the gradients too, at 3 of
            the weights too.
        timeout: seconds that a rank waits for the others in a collective, before it ends with an error.

    Raises:
        ValueError: for what is unknown, or cannot be on this machine, with what to change.
    """

    strategy: str = "single"
    devices: int = 1
    nodes: int = 1
    accelerator: str = "auto"
    precision: str = "32-true"
    activation_checkpointing: bool = False
    zero_stage: int = 3
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        for name, known in (("strategy", STRATEGIES), ("accelerator", DEVICES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        for name in ("devices", "nodes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number and at least 1")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout={self.timeout:g} must be a number of seconds above 0")
        if self.strategy == "single" and self.ranks > 1:
            raise ValueError(f"strategy=single is one process, and {self.ranks} are asked for; take ddp or fsdp")
        if self.precision == "16-mixed" and self.strategy in (*SHARDED, "deepspeed"):
            wrong = f"precision=16-mixed with strategy={self.strategy}: each rank would find a loss scale of its own"
            raise ValueError(f"{wrong}; take bf16-mixed")
        if self.device == "cuda" and self.devices > torch.cuda.device_count():
            wrong = f"devices={self.devices}, and this machine has {torch.cuda.device_count()} GPUs"
            raise ValueError(f"{wrong}; lower devices, or take accelerator=cpu")
        if self.strategy == "fsdp1" and self.device == "cpu":
            raise ValueError(
                "strategy=fsdp1: Lightning's FSDPStrategy takes GPUs only; take fsdp, which runs on CPUs too"
            )
        if self.strategy == "deepspeed":
            if reason := why_not():
                raise ValueError(f"strategy=deepspeed: {reason}; or take fsdp, which shards the same")
            if self.precision == "bf16-true":
                wrong = "DeepSpeed keeps float32 weights beside those in 16 bits"
                raise ValueError(f"precision=bf16-true with strategy=deepspeed: {wrong}; take bf16-mixed, or fsdp")
        if self.zero_stage not in ZERO_STAGES:
            raise ValueError(f"zero_stage={self.zero_stage!r} is none of {', '.join(map(str, ZERO_STAGES))}")
        if self.zero_stage != Parallel.zero_stage and self.strategy != "deepspeed":
            raise ValueError(f"zero_stage={self.zero_stage} has no effect on strategy={self.strategy}; take deepspeed")

    @property
    def ranks(self) -> int:
        """Over all nodes."""
        return self.devices * self.nodes

    @property
    def data_ranks(self) -> int:
        """Ranks that see different rows."""
        return 1 if self.strategy == "tensor-parallel" else self.ranks

    @property
    def device(self) -> str:
        """The type of torch's device: "cpu" or "cuda".

        Raises:
            ValueError: for a GPU where there is none.
        """
        there = torch.cuda.is_available()
        if self.accelerator == "gpu" and not there:
            raise ValueError("accelerator=gpu, and torch sees no CUDA GPU; take accelerator=cpu")
        return "cuda" if there and self.accelerator != "cpu" else "cpu"
