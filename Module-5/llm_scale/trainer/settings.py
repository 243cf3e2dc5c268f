"""How a run is spread over ranks: what is asked for, and what cannot be. A command reads it before it starts ranks."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

STRATEGIES = ("single", "ddp", "fsdp", "fsdp1", "deepspeed", "tensor-parallel")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed")
SHARDED = ("fsdp", "fsdp1", "tensor-parallel")  # a rank holds a part of the weights
DEVICES = ("auto", "cpu", "gpu")


@dataclass(frozen=True)
class Parallel:
    """How many ranks a run has, and what each of them holds.

    Attributes:
        strategy: "single", one process; "ddp", the whole model on every rank, other rows; "fsdp", a part of weights,
            gradients and optimiser states on every rank, other rows (PyTorch's `fully_shard`); "fsdp1", the same in its
            older form, for GPUs; "deepspeed", the same by that library; "tensor-parallel", a part of every matrix on
            every rank, the same rows.
        devices: ranks of a node.
        nodes: how many there are.
        accelerator: "cpu", "gpu", or "auto" for GPUs where there are any.
        precision: in Lightning's words.
        activation_checkpointing: keep each block's input alone, and compute the block again in the backward pass.

    Raises:
        ValueError: for what is unknown, or cannot be on this machine, with what to change.
    """

    strategy: str = "single"
    devices: int = 1
    nodes: int = 1
    accelerator: str = "auto"
    precision: str = "32-true"
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, known in (("strategy", STRATEGIES), ("accelerator", DEVICES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        for name in ("devices", "nodes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number and at least 1")
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
            there = importlib.util.find_spec("deepspeed") is not None
            wrong = (
                "the loss of a step is summed over ranks after its backward pass, where DeepSpeed keeps no gradients"
            )
            raise ValueError(
                f"strategy=deepspeed: {wrong}; take fsdp, which shards the same"
                if there
                else "strategy=deepspeed: the package deepspeed is not installed; take fsdp, which shards the same"
            )

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
