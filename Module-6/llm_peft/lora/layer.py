"""`LoRALinear`: a frozen linear layer with a trained update of low rank beside it.

Names say shapes: `batch` rows of anything, `inside` and `outside` the width before and after the layer, r the rank.
A (r, inside) compresses, B (outside, r) expands.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from llm_peft.lora.config import LoRAConfig


def sizes(layer: nn.Module) -> tuple[int, int]:
    """Width before and after a linear layer, also of GPT-2's `Conv1D`, whose weight stands (inside, outside)."""
    body: Any = layer
    return (body.in_features, body.out_features) if hasattr(layer, "in_features") else tuple(body.weight.shape)


class LoRALinear(nn.Module):
    """W x + scaling · B A dropout(x), where A and B alone are trained. Hu et al. 2021, equation 3.

    B starts at 0, so the first forward pass is the frozen layer's. A starts as a linear layer of PyTorch does: with
    both at 0 neither would have a gradient. Both are float32, whatever the width of the frozen layer: small steps of a
    trained weight are lost in 16 bits.

    Args:
        base_layer: a linear layer, also one of four bits; it is frozen.
        config: rank, scale, dropout.
    """

    def __init__(self, base_layer: nn.Module, config: LoRAConfig) -> None:
        super().__init__()
        inside, outside = sizes(base_layer)
        body: Any = base_layer
        device = body.weight.device
        self.base_layer = base_layer.requires_grad_(False)
        self.config = config
        self.lora_A = nn.Parameter(torch.empty(config.r, inside, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(outside, config.r, device=device, dtype=torch.float32))
        self.dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "*batch inside"]) -> Float[Tensor, "*batch outside"]:
        frozen = self.base_layer(x)
        compressed = F.linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A)
        return (frozen + self.config.scaling * F.linear(compressed, self.lora_B)).to(frozen.dtype)

    def delta(self) -> Float[Tensor, "outside inside"]:
        """What the update adds to the weight, in float32."""
        return self.config.scaling * (self.lora_B.float() @ self.lora_A.float())

    def merged_weight(self, weight: Float[Tensor, "outside inside"]) -> Float[Tensor, "outside inside"]:
        """This weight, in float32, with the update in it."""
        return weight + self.delta()

    def extra_repr(self) -> str:
        return f"r={self.config.r}, scaling={self.config.scaling:g}"


class DoRALinear(LoRALinear):
    """m · V / |V| x with V = W + scaling · B A, where the length m of each row is trained too. Liu et al. 2024, eq. 5.

    m starts at the length of W's rows. As in the paper (section 4.3) the length of V gets no gradient.
    """

    def __init__(self, base_layer: nn.Module, config: LoRAConfig) -> None:
        super().__init__(base_layer, config)
        weight: Any = base_layer.weight
        self.lora_magnitude_vector = nn.Parameter(weight.detach().float().norm(dim=1))

    def forward(self, x: Float[Tensor, "*batch inside"]) -> Float[Tensor, "*batch outside"]:
        base: Any = self.base_layer
        result = base(x)
        inputs = self.dropout(x)
        # What dropout hides is hidden from the change, not from the frozen layer.
        frozen = (
            F.linear(inputs, base.weight) if inputs is not x else result if base.bias is None else result - base.bias
        )
        update = self.config.scaling * F.linear(F.linear(inputs, self.lora_A), self.lora_B)
        length = (base.weight + self.config.scaling * self.lora_B @ self.lora_A).norm(dim=1).detach()
        ratio = self.lora_magnitude_vector / length
        return result + (ratio - 1) * frozen + ratio * update

    def merged_weight(self, weight: Float[Tensor, "outside inside"]) -> Float[Tensor, "outside inside"]:
        turned = weight + self.delta()
        return self.lora_magnitude_vector.float()[:, None] * turned / turned.norm(dim=1, keepdim=True)


@torch.no_grad()
def start_from_singular_values(layer: LoRALinear) -> None:
    """PiSSA: A and B take the r largest singular values of the weight, which keeps the others, in place.

    W = U S V; B = U √S and A = √S V of the first r, divided so that scaling · B A is their part of W. Meng et al. 2024,
    equations 2 to 4.
    """
    base: Any = layer.base_layer
    left, values, right = torch.linalg.svd(base.weight.float(), full_matrices=False)
    r = layer.config.r
    if r > len(values):
        raise ValueError(f"r={r} with init_lora_weights='pissa': a layer has {len(values)} singular values; lower r")
    root = (values[:r] / layer.config.scaling).sqrt()
    layer.lora_B.copy_(left[:, :r] * root)
    layer.lora_A.copy_(root[:, None] * right[:r])
    base.weight.copy_(base.weight - layer.delta())
