"""An update put into the weights: no second path to compute, and no adapter any more. Sums are made in float32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_peft.lora.inject import adapters
from llm_peft.lora.layer import LoRALinear

KEPT = "_unmerged_weight"


def weight_of(layer: nn.Module) -> Float[Tensor, "outside inside"]:
    """The weight of a linear layer in float32; one of four bits is written out, `Conv1D`'s turned over."""
    body: Any = layer
    if hasattr(layer, "dequantize"):
        return body.dequantize().float()
    if not body.weight.is_floating_point():
        raise ValueError(f"a {type(layer).__name__} does not write its weight out; merge into the model's own weights")
    return body.weight.detach().T.float() if isinstance(layer, Conv1D) else body.weight.detach().float()


@torch.no_grad()
def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """By path, the weight that each layer with an adapter has once it is merged, in the width of the frozen one.

    Raises:
        ValueError: when one is not finite, or the model has no adapters.
    """
    found = {}
    for name, layer in adapters(model):
        base: Any = layer.base_layer
        weight = layer.merged_weight(weight_of(base))
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"the merged weight of {name} is not finite; the adapter is broken, take another one")
        weight = weight.T.contiguous() if isinstance(base, Conv1D) else weight
        found[name] = weight.to(base.weight.dtype if base.weight.is_floating_point() else torch.float32)
    if not found:
        raise ValueError("the model has no adapters to merge; inject or load one first")
    return found


def merge_(model: nn.Module) -> None:
    """Put every update into its layer's weight, in place; until `unmerge_`, the adapters do nothing.

    All are computed before the first is changed, and the old weights are kept: taking the update out again by
    subtraction would not give them back.

    Raises:
        ValueError: as `merged_weights`; also for adapters that are merged already, and for weights of four bits, which
            would round the sum. The model is then as it was.
    """
    for name, layer in adapters(model):
        base: Any = layer.base_layer
        if hasattr(layer, KEPT):
            raise ValueError(f"{name} is merged already; call unmerge_ first")
        if not base.weight.is_floating_point():
            raise ValueError(f"{name} has a weight of four bits, which would round the update; take `merged`")
    weights = merged_weights(model)
    for name, layer in adapters(model):
        base = layer.base_layer
        setattr(layer, KEPT, base.weight.data)
        base.weight.data = weights[name]
        layer.forward = base.forward  # type: ignore[method-assign]


def unmerge_(model: nn.Module) -> None:
    """Give every layer its own weight back, bit for bit.

    Raises:
        ValueError: when nothing is merged.
    """
    merged = [layer for _, layer in adapters(model) if hasattr(layer, KEPT)]
    if not merged:
        raise ValueError("nothing is merged; call merge_ first")
    for layer in merged:
        base: Any = layer.base_layer
        base.weight.data = getattr(layer, KEPT)
        delattr(layer, KEPT)
        del layer.forward


def merged(model: nn.Module) -> nn.Module:
    """A copy of the model with the updates in its weights, and without adapters; the model itself stays as it is.

    Layers of four bits become linear layers of float32.

    Raises:
        ValueError: as `merged_weights`.
    """
    weights = merged_weights(model)
    plain = copy.deepcopy(model)
    for name, layer in list(adapters(plain)):
        plain.set_submodule(name, _plain(layer, weights[name]))
    return plain


def _plain(layer: LoRALinear, weight: Tensor) -> nn.Module:
    base: Any = layer.base_layer
    if not base.weight.is_floating_point():
        with torch.device("meta"):
            made = nn.Linear(weight.shape[1], weight.shape[0], bias=base.bias is not None)
        made.bias = base.bias
        base = made
    base.weight = nn.Parameter(weight)
    return base.requires_grad_(True).train(layer.training)
