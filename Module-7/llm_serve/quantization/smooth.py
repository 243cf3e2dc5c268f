"""Eight bits for weights and activations: integer products, and SmoothQuant, which makes activations easy to round.

A few channels of the activations are far larger than the others, and the step of a token's integers follows the
largest. SmoothQuant divides them and multiplies the weights' columns, which are even. Xiao et al. 2022
(arXiv:2211.10438), equations 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor, nn

from llm_serve.quantization.calibration import Moments
from llm_serve.quantization.fold import Fold
from llm_serve.quantization.rounding import Grid, IntWeight, WeightScheme, round_to_nearest

CHANNEL = WeightScheme(bits=8, group_size=None)  # of the weights, and of a token's activations


@dataclass(frozen=True)
class Int8Scheme:
    """Eight bits for weights, a scale an output channel, and for activations, a scale a token.

    Attributes:
        alpha: share of the activations' size that is moved into the weights, 0 to 1; None moves nothing.

    Raises:
        ValueError: for an alpha out of its range.
    """

    alpha: float | None = 0.5

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(
                f"alpha={self.alpha!r}: a share lies in [0, 1]; 0.5 is usual, None leaves activations alone"
            )


def smooth_scale(fold: Fold, moments: Moments, alpha: float) -> Float[Tensor, " channels"]:
    """max|x|^alpha / max|w|^(1 - alpha) of each channel, with the largest of all layers that read it.

    A channel whose inputs or weights are all 0 has the scale 1.
    """
    inputs = fold.narrow(moments.largest, largest=True).double()
    columns = torch.stack([layer.weight.detach().abs().amax(dim=0) for layer in fold.layers.values()]).amax(dim=0)
    weights = fold.narrow(columns, largest=True).double()
    scale = inputs.pow(alpha) / weights.pow(1 - alpha)
    return torch.where((inputs > 0) & (weights > 0), scale, 1.0).float()


def integer_product(a: Int8[Tensor, "rows inner"], b: Int8[Tensor, "columns inner"]) -> Int32[Tensor, "rows columns"]:
    """a b^T with sums in 32 bits: exact for up to 131,071 products of -128 and -128, more than any layer has."""
    if a.shape[1] == 1:  # torch 2.13 gives memory that nothing was written to then, on a CPU
        return a.int() * b.int().T
    return torch._int_mm(a.contiguous(), b.T)


class Int8Linear(nn.Module):
    """x W^T + b with both factors in eight bits. Buffers as of compressed-tensors' `int-quantized`.

    Each token's activations get a scale when they are there, max|x| / 127.5. The product is one of integers and exact;
    the two scales and the bias come after it.

    Args:
        weight: integers of eight bits with a scale an output channel.
        bias: of the layer.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: IntWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.bias = bias
        self.out_features, self.in_features = weight.numbers.shape
        self.register_buffer("weight", weight.numbers)
        self.register_buffer("weight_scale", weight.grid.scale)
        self.requires_grad_(False)

    @classmethod
    def empty(cls, layer: nn.Linear, dtype: torch.dtype) -> Int8Linear:
        """One of the layer's sizes, of zeros: to load a file into."""
        numbers = torch.zeros(layer.out_features, layer.in_features, dtype=torch.int8)
        return cls(IntWeight(numbers, Grid(torch.ones(layer.out_features, 1, dtype=dtype), None)), layer.bias)

    def dequantize(self) -> Float[Tensor, "outputs inputs"]:
        """The weight written out."""
        return IntWeight(self.weight, Grid(self.weight_scale, None)).dequantize()

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        tokens = round_to_nearest(x.reshape(-1, self.in_features), CHANNEL)
        product = integer_product(tokens.numbers, self.weight).float()
        out = product * tokens.grid.scale.float() * self.weight_scale.float().T
        out = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
