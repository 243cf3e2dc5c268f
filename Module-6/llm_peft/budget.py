"""The memory of a fine-tuning, term by term, before anything is loaded.

What is held from step to step is counted from the model's shapes. What a step needs beside it is found by running the
step on fake tensors, which have shapes and storages but no numbers: the same operations, in the same order, of the very
model of transformers that is to be trained.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from llm_core.losses import causal_loss, chunked_causal_loss
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM

from llm_peft.lora.inject import find_targets, inject
from llm_peft.prepare import checkpoint_blocks
from llm_peft.settings import FineTune

SECOND_TABLE = 256 * 4 + 16 * 4 + 4  # of a layer of four bits: the tables of both quantisations, and the scales' mean


@dataclass(frozen=True)
class Budget:
    """Bytes of a fine-tuning with AdamW.

    Attributes:
        frozen: weights that no step changes.
        trained: weights that each step changes.
        states: AdamW's two averages of these, and a number of steps each.
        gradients: when all are there.
        step: the most that a step needs beside weights and states, at its highest moment: activations, logits, and
            gradients as far as they are there then.
        parameters, trained_parameters: how many numbers the model has, adapters included, and how many are trained.
    """

    frozen: int
    trained: int
    states: int
    gradients: int
    step: int
    parameters: int
    trained_parameters: int

    @property
    def held(self) -> int:
        """From step to step."""
        return self.frozen + self.trained + self.states

    @property
    def bytes(self) -> int:
        """At the highest moment."""
        return self.held + self.step


class FourBits(nn.Module):
    """A layer of four bits as it is for the memory: a matrix that is there while it is multiplied, in both passes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        numbers = layer.weight.numel()
        blocks = -(-numbers // 64)
        self.held = -(-numbers // 2) + blocks + 4 * -(-blocks // 256) + SECOND_TABLE
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.bias = layer.bias

    def dequantize(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        product = _WrittenOut.apply(x, self.out_features)
        return product if self.bias is None else product + self.bias


class _WrittenOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, outside: int) -> Tensor:
        ctx.shape = (outside, x.shape[-1])
        return x @ x.new_empty(ctx.shape).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.shape), None


class Live(TorchDispatchMode):
    """Counts the bytes of storages that operations make, as long as something holds them.

    Attributes:
        most: the highest count.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self._sizes = {each.untyped_storage()._cdata: 0 for each in known}
        self._now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_iter(made):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self._now += storage.nbytes()
                    self.most = max(self.most, self._now)
                    weakref.finalize(storage, self._gone, storage._cdata)
        return made

    def _gone(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)


def budget(config: Any, settings: FineTune, batch: int, time: int, loss_chunk: int = 0) -> Budget:
    """What a fine-tuning needs.

    Args:
        config: of transformers, as `AutoConfig.from_pretrained` gives it.
        settings: method, adapter, width, checkpointing.
        batch: rows of a batch.
        time: positions of a row.
        loss_chunk: tokens whose logits exist at a time; 0 for all.

    Raises:
        ValueError: for numbers below 1, and as `prepare`.
    """
    for name, value, least in (("batch", batch, 1), ("time", time, 2)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _model(config, settings)
        trained = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)
        ids = torch.zeros(batch, time, dtype=torch.long)  # the positions too: of rows that hold several examples
        _make_averages(trained, optimizer)
        states = [each for state in optimizer.state.values() for each in state.values() if isinstance(each, Tensor)]
        with Live([*model.parameters(), *model.buffers(), *states, ids]) as live:
            _step(model, optimizer, ids, loss_chunk)
    four = [part for part in model.modules() if isinstance(part, FourBits)]
    inside = {id(part.weight) for part in four}
    frozen = [each for each in model.parameters() if not each.requires_grad and id(each) not in inside]
    numbers = sum(each.numel() for each in [*frozen, *trained])
    return Budget(
        frozen=_bytes([*frozen, *model.buffers()]) + sum(part.held for part in four),
        trained=_bytes(trained), states=_bytes(states), gradients=_bytes(trained), step=live.most,
        parameters=numbers + sum(part.in_features * part.out_features for part in four),
        trained_parameters=sum(each.numel() for each in trained),
    )  # fmt: skip


def _model(config: Any, settings: FineTune) -> nn.Module:
    model: Any = AutoModelForCausalLM.from_config(config, dtype=settings.torch_dtype, trust_remote_code=False)
    if settings.method == "qlora":
        for name in find_targets(model, "all-linear"):
            model.set_submodule(name, FourBits(model.get_submodule(name)))
    if settings.method != "full":
        inject(model, settings.lora)
    if settings.gradient_checkpointing:
        checkpoint_blocks(model)
    return model.train()


def _make_averages(trained: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """What AdamW makes at its first step, from gradients of the right shapes: no pass through the model is needed."""
    for each in trained:
        each.grad = torch.zeros_like(each)
    optimizer.step()
    optimizer.zero_grad()


def _step(model: Any, optimizer: torch.optim.Optimizer, ids: Tensor, loss_chunk: int) -> None:
    if loss_chunk:
        hidden = model.base_model(input_ids=ids, position_ids=ids, use_cache=False).last_hidden_state
        total, targets = chunked_causal_loss(hidden, model.get_output_embeddings().weight, ids, loss_chunk)
    else:
        total, targets = causal_loss(model(input_ids=ids, position_ids=ids, use_cache=False).logits, ids)
    (total / targets).backward()
    del total, targets
    optimizer.step()
    optimizer.zero_grad()


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(each.nbytes for each in tensors)
