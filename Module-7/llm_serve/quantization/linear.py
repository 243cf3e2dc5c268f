"""`IntLinear`: a linear layer whose weight is packed integers in memory, and a matrix only while it is multiplied."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from llm_serve.quantization.packing import pack, unpack
from llm_serve.quantization.rounding import Grid, IntWeight, WeightScheme


class IntLinear(nn.Module):
    """x W^T + b with W in integers. Its buffers have the names and the layout of compressed-tensors' `pack-quantized`.

    Args:
        weight: the integers and their grid.
        scheme: of which they are.
        bias: of the layer.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_shape: Tensor
    weight_zero_point: Tensor | None

    def __init__(self, weight: IntWeight, scheme: WeightScheme, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.scheme, self.bias = scheme, bias
        self.out_features, self.in_features = weight.numbers.shape
        zero_point = weight.grid.zero_point
        self.register_buffer("weight_packed", pack(weight.numbers, scheme.bits))
        self.register_buffer("weight_scale", weight.grid.scale.contiguous())
        self.register_buffer("weight_shape", torch.tensor(weight.numbers.shape))
        # Zero points are packed down the output channels.
        packed = None if zero_point is None else pack(zero_point.T, scheme.bits).T.contiguous()
        self.register_buffer("weight_zero_point", packed)
        self.requires_grad_(False)

    @classmethod
    def empty(cls, layer: nn.Linear, scheme: WeightScheme, dtype: torch.dtype) -> IntLinear:
        """One of the layer's sizes, of zeros: to load a file into."""
        shape = (layer.out_features, scheme.groups(layer.in_features))
        zero_point = None if scheme.symmetric else torch.zeros(shape, dtype=torch.int8)
        numbers = torch.zeros(layer.out_features, layer.in_features, dtype=torch.int8)
        return cls(IntWeight(numbers, Grid(torch.ones(shape, dtype=dtype), zero_point)), scheme, layer.bias)

    @property
    def quantized(self) -> IntWeight:
        """The integers and their grid."""
        bits, zero_point = self.scheme.bits, None
        if self.weight_zero_point is not None:
            zero_point = unpack(self.weight_zero_point.T.contiguous(), bits, self.out_features).T
        return IntWeight(unpack(self.weight_packed, bits, self.in_features), Grid(self.weight_scale, zero_point))

    def dequantize(self) -> Float[Tensor, "outputs inputs"]:
        """The weight written out, in the dtype of the scales."""
        return self.quantized.dequantize()

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return F.linear(x, self.dequantize().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        size = self.scheme.group_size or self.in_features
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.scheme.bits}, group={size}"
        )
