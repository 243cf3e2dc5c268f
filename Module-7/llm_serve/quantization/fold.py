"""Scales of input channels that cost nothing at inference: a layer's columns are multiplied by them, and what made its
inputs is divided.

In a Llama's block four places make the inputs of linear layers without a function between that would see the scale: the
two norms, the values (attention averages them), and `up_proj` (its outputs are multiplied by the gate's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

FOLDS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)


@dataclass(frozen=True)
class Fold:
    """A place whose outputs are the inputs of layers.

    Attributes:
        source: a norm or a linear layer.
        layers: by name in the block, those that read it.
        shared: heads of queries that read one head of values, by its width; None where each channel is read once.
    """

    source: nn.Module
    layers: dict[str, nn.Linear]
    shared: tuple[int, int] | None = None

    def narrow(self, sizes: Float[Tensor, " inputs"], largest: bool = False) -> Float[Tensor, " channels"]:
        """A number of each input as one of each channel of the source: their mean, or the largest."""
        if self.shared is None:
            return sizes
        heads, width = self.shared
        cut = sizes.view(-1, heads, width)  # (heads of values, of queries each, width)
        return (cut.amax(dim=1) if largest else cut.mean(dim=1)).flatten()

    def widen(self, scale: Float[Tensor, " channels"]) -> Float[Tensor, " inputs"]:
        """A scale of each channel of the source for each input of the layers."""
        if self.shared is None:
            return scale
        heads, width = self.shared
        return scale.view(-1, 1, width).expand(-1, heads, width).flatten()

    @torch.no_grad()
    def apply(self, scale: Float[Tensor, " channels"]) -> None:
        """Divide the source by the scale and multiply the layers' columns by it, in place: the function stays."""
        source: Any = self.source
        per_row = scale[:, None] if isinstance(source, nn.Linear) else scale
        source.weight.div_(per_row)
        if getattr(source, "bias", None) is not None:
            source.bias.div_(scale)
        for layer in self.layers.values():
            layer.weight.mul_(self.widen(scale))


def folds_of(block: nn.Module, head_dim: int) -> list[Fold]:
    """The four folds of a Llama's block.

    Raises:
        ValueError: when the block has other parts.
    """
    found = []
    for source, names in FOLDS:
        try:
            parts = {name: block.get_submodule(name) for name in (source, *names)}
        except AttributeError:
            wrong = f"{type(block).__name__} has no {source} before {', '.join(names)}"
            raise ValueError(f"{wrong}: scales are folded into a Llama's block; take rtn or gptq") from None
        layers: dict[str, nn.Linear] = {}
        for name in names:
            layer = parts[name]
            if type(layer) is not nn.Linear:
                raise ValueError(f"{name} is a {type(layer).__name__}, and scales are folded into nn.Linear only")
            layers[name] = layer
        body, inputs = parts[source], next(iter(layers.values())).in_features
        shared = None
        if isinstance(body, nn.Linear) and body.out_features != inputs:
            shared = (inputs // body.out_features, head_dim)
        found.append(Fold(body, layers, shared))
    return found
