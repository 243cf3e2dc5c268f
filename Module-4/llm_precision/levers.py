"""One training step of a GPT with its levers: precision, attention, optimiser, compilation, recomputation, chunks.

`Levers` says which are pulled; `build_step` gives a function that makes a step and returns its loss. The loop is bare:
what is measured is the model and its step, not a trainer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from llm_core.config import GPTConfig
from llm_core.fast import fast
from llm_core.losses import causal_loss, chunked_causal_loss
from llm_core.model import GPT
from llm_core.optimizers import parameter_groups
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from llm_precision.benchmark import Unsupported, Variant

PRECISIONS = ("fp32", "tf32", "bf16-mixed", "bf16-true", "fp16-mixed")
ATTENTION = {
    "naive": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
OPTIMIZERS: dict[str, dict[str, bool]] = {
    "for-loop": {"foreach": False, "fused": False}, "foreach": {"foreach": True}, "fused": {"fused": True},
}  # fmt: skip


@dataclass(frozen=True)
class Levers:
    """What a training step is made with.

    Attributes:
        precision: "fp32"; "tf32", products of float32 in TF32; "bf16-mixed" and "fp16-mixed", autocast over float32
            weights; "bf16-true", everything in bfloat16.
        attention: "naive" keeps the T x T table; "flash", "efficient", "cudnn" are kernels; "auto" lets torch choose.
        optimizer: AdamW one parameter at a time, in groups ("foreach"), or in one kernel ("fused").
        compiled: forward and backward pass through `torch.compile`.
        checkpointing: keep each block's input only, and compute the block again in the backward pass.
        loss_chunk: tokens whose logits exist at a time; 0 for all.
        accumulate: batches a step.
        fast: `llm_core.fast`'s forms of norm and rotation, which count on a CPU in float32.
    """

    precision: str = "fp32"
    attention: str = "auto"
    optimizer: str = "for-loop"
    compiled: bool = False
    checkpointing: bool = False
    loss_chunk: int = 0
    accumulate: int = 1
    fast: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("precision", PRECISIONS), ("attention", ("auto", *ATTENTION)), ("optimizer", tuple(OPTIMIZERS)),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        if self.accumulate < 1 or self.loss_chunk < 0:
            raise ValueError(f"accumulate={self.accumulate} must be 1 or more, loss_chunk={self.loss_chunk} 0 or more")

    def name(self, base: Levers) -> str:
        """What differs from `base`, for a row of a table."""
        changed = [field.name for field in fields(self) if getattr(self, field.name) != getattr(base, field.name)]
        texts = [name if getattr(self, name) is True else f"{name} {getattr(self, name)}" for name in changed]
        return ", ".join(texts).replace("precision ", "").replace("_", " ") or "baseline"


def loss_function(model: GPT, levers: Levers) -> Callable[[Tensor], Tensor]:
    """Token ids, (batch, time), to the mean loss of predicting each from those before it."""

    def loss(ids: Tensor) -> Tensor:
        if levers.loss_chunk:
            total, targets = chunked_causal_loss(model.features(ids), model.lm_head.weight, ids, levers.loss_chunk)
        else:
            total, targets = causal_loss(model(ids).logits, ids)
        return total / targets

    return torch.compile(loss, dynamic=False) if levers.compiled else loss


@contextlib.contextmanager
def kernels_of(levers: Levers) -> Iterator[None]:
    """How products of float32 round, and the kernel of attention; both are as before afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = levers.precision != "fp32"
    try:
        with contextlib.nullcontext() if levers.attention == "auto" else sdpa_kernel(ATTENTION[levers.attention]):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def build_step(
    config: GPTConfig, levers: Levers, batches: list[Tensor], device: str, learning_rate: float = 3e-4, seed: int = 0
) -> Callable[[], Tensor]:
    """A new model and its optimiser; each call makes one step on the next batches and returns its loss, not read yet.

    Args:
        config: sizes.
        levers: what to pull.
        batches: token ids on the device, each (rows, time); taken in turns.
        device: "cpu" or "cuda".
        learning_rate: of AdamW, constant.
        seed: of the first weights: two variants start from the same.

    Raises:
        Unsupported: for a lever that the device has not got.
    """
    if levers.precision == "tf32" and not device.startswith("cuda"):
        raise Unsupported("tf32 is a format of GPUs' matrix units")
    if levers.attention in ("efficient", "cudnn") and not device.startswith("cuda"):
        raise Unsupported(f"{levers.attention} attention is a kernel for GPUs")
    torch.manual_seed(seed)
    with torch.device(device):
        model = GPT(config)
    if levers.fast:
        fast(model)
    if levers.precision == "bf16-true":
        model = model.to(torch.bfloat16)
    if levers.checkpointing:
        for block in model.model.layers:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    groups = parameter_groups(model, 0.1)
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), **OPTIMIZERS[levers.optimizer])
    scaler = torch.amp.GradScaler(device, enabled=levers.precision == "fp16-mixed")
    mixed = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}.get(levers.precision)
    loss_of, position = loss_function(model, levers), 0

    def step() -> Tensor:
        nonlocal position
        total = torch.zeros((), device=device)
        for _ in range(levers.accumulate):
            with kernels_of(levers):
                with (
                    torch.autocast(device, dtype=mixed) if mixed else contextlib.nullcontext()
                ):  # the forward pass alone
                    loss = loss_of(batches[position % len(batches)]) / levers.accumulate
                scaler.scale(loss).backward()
            total += loss.detach()
            position += 1
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


def variants(
    config: GPTConfig, ladder: list[Levers], batches: list[Tensor], device: str, flops: float = 0.0
) -> list[Variant]:
    """A variant for each set of levers, named by what differs from the first."""
    tokens = batches[0].numel()
    return [
        Variant(
            levers.name(ladder[0]), partial(build_step, config, levers, batches, device),
            tokens * levers.accumulate, flops * tokens * levers.accumulate,
        )
        for levers in ladder
    ]  # fmt: skip


def one_at_a_time(base: Levers, pulled: dict[str, Any]) -> list[Levers]:
    """The base, then the base with each lever alone, then with all of them."""
    return [base, *(replace(base, **{name: value}) for name, value in pulled.items()), replace(base, **pulled)]
