"""`NF4Linear`: a frozen linear layer whose weight is four bits in memory and a matrix only while it is multiplied."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_peft.lora.inject import find_targets
from llm_peft.quantization.blocks import Blocks
from llm_peft.quantization.fast import dequantize_nf4
from llm_peft.quantization.nf4 import NF4Tensor, quantize_nf4


class FourBitProduct(torch.autograd.Function):
    """x W^T. The backward pass writes W out a second time; the matrix is kept in neither pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: NF4Tensor) -> Tensor:
        ctx.quantized = quantized
        return x @ dequantize_nf4(quantized, x.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ dequantize_nf4(ctx.quantized, gradient.dtype), None


class NF4Linear(nn.Module):
    """x W^T + b with W in NF4, for inputs of any float type. It is never trained; an adapter stands beside it.

    Args:
        layer: whose weight is quantised, and whose bias is taken over.
        double: quantise the scales too.
    """

    def __init__(self, layer: nn.Linear, double: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        quantized = quantize_nf4(layer.weight, double)
        parts = {"weight": quantized.packed, "absmax": quantized.absmax, "offset": quantized.offset}
        parts |= dict(zip(("double_indices", "double_absmax"), quantized.double or (None, None), strict=True))
        for name, values in parts.items():
            self.register_buffer(name, values)
        self.requires_grad_(False)

    @property
    def quantized(self) -> NF4Tensor:
        """The weight as it is in memory."""
        parts: Any = self
        double = None if parts.double_indices is None else Blocks(parts.double_indices, parts.double_absmax)
        return NF4Tensor(parts.weight, parts.absmax, double, parts.offset, (self.out_features, self.in_features))

    def dequantize(self) -> Float[Tensor, "outside inside"]:
        """The weight written out, in float32."""
        return dequantize_nf4(self.quantized)

    def forward(self, x: Float[Tensor, "*batch inside"]) -> Float[Tensor, "*batch outside"]:
        product = FourBitProduct.apply(x, self.quantized)
        return product if self.bias is None else product + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def quantize_linears(model: nn.Module, target_modules: tuple[str, ...] | str = "all-linear") -> list[str]:
    """Put an `NF4Linear` in place of each linear layer but the head, in place; the paths of those layers.

    Raises:
        ValueError: when nothing matches, or a layer is no `nn.Linear`. The model is then as it was.
    """
    names = find_targets(model, target_modules)
    for name in names:
        layer = model.get_submodule(name)
        if type(layer) is not nn.Linear:
            raise ValueError(f"{name} is a {type(layer).__name__}, and only nn.Linear is quantised here")
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        model.set_submodule(name, NF4Linear(layer))
    return names
