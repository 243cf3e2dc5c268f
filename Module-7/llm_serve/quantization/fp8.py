"""FP8 at inference: weights in E4M3 with a scale for the matrix or for each output channel, and activations with a
scale known from calibration, or for each token when it is there.

Micikevicius et al. 2022 (arXiv:2209.05433) for the format. A GPU multiplies the eight-bit numbers themselves; here they
are written out in float32 first, which gives the same products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from llm_precision.numbers.formats import E4M3
from torch import Tensor, nn
from torch.nn import functional as F

FP8 = torch.float8_e4m3fn
WEIGHTS = ("tensor", "channel")
ACTIVATIONS = ("token", "tensor", None)


@dataclass(frozen=True)
class Fp8Scheme:
    """Where the scales of FP8 are.

    Attributes:
        weights: "tensor" for one a matrix, "channel" for one an output channel.
        activations: "token" for one a token when it is there; "tensor" for one of all tokens from calibration; None
            leaves activations as they are.

    Raises:
        ValueError: for another word, with these.
    """

    weights: Literal["tensor", "channel"] = "channel"
    activations: Literal["token", "tensor"] | None = "token"

    def __post_init__(self) -> None:
        for name, known in (("weights", WEIGHTS), ("activations", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(map(repr, known))}")


class Fp8(NamedTuple):
    """Numbers of E4M3 and what they are multiplied by."""

    numbers: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """The numbers that these stand for, in the dtype of the scale."""
        return self.numbers.to(self.scale.dtype) * self.scale


def largest_scale(largest: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The scale with which the largest magnitude becomes E4M3's largest number, 448; of zeros a tiny one."""
    scale = largest / E4M3.max
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)


def to_fp8(x: Float[Tensor, "..."], scale: Float[Tensor, "..."]) -> Fp8:
    """Numbers divided by a scale and rounded to E4M3, as `llm_precision`'s `cast` with `saturate` rounds them."""
    # Cut off what is larger here, and leave nothing to how a device casts it.
    return Fp8((x / scale).clamp(-E4M3.max, E4M3.max).to(FP8), scale)


def weight_to_fp8(weight: Float[Tensor, "outputs inputs"], scheme: Fp8Scheme) -> Fp8:
    """A matrix in FP8; the scale is (1,) or (outputs, 1).

    Raises:
        ValueError: for a weight that is not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("a weight that is not finite has no scale; quantise a model that is whole")
    sizes = weight.abs()
    return to_fp8(
        weight, largest_scale(sizes.max()[None] if scheme.weights == "tensor" else sizes.amax(1, keepdim=True))
    )


class Fp8Linear(nn.Module):
    """x W^T + b with W, and x where the scheme says so, in FP8. Buffers as of compressed-tensors' `float-quantized`.

    Args:
        weight: in FP8.
        scheme: of the scales.
        largest_input: max |x| from calibration, where activations have one scale for all tokens.
        bias: of the layer.

    Raises:
        ValueError: when the scheme asks for that number and it is not given.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None

    def __init__(
        self, weight: Fp8, scheme: Fp8Scheme, largest_input: Tensor | None = None, bias: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        static = scheme.activations == "tensor"
        if static and largest_input is None:
            raise ValueError("activations='tensor' takes its scale from calibration; give rows, or take 'token'")
        self.scheme, self.bias = scheme, bias
        self.out_features, self.in_features = weight.numbers.shape
        self.register_buffer("weight", weight.numbers)
        self.register_buffer("weight_scale", weight.scale)
        kept = largest_scale(largest_input.to(weight.scale.dtype)) if static and largest_input is not None else None
        self.register_buffer("input_scale", None if kept is None else kept.reshape(1))
        self.requires_grad_(False)

    @classmethod
    def empty(cls, layer: nn.Linear, scheme: Fp8Scheme, dtype: torch.dtype) -> Fp8Linear:
        """One of the layer's sizes, of zeros: to load a file into."""
        numbers = torch.zeros(layer.out_features, layer.in_features).to(FP8)
        scale = torch.ones((1,) if scheme.weights == "tensor" else (layer.out_features, 1), dtype=dtype)
        return cls(Fp8(numbers, scale), scheme, torch.ones(()), layer.bias)

    def dequantize(self) -> Float[Tensor, "outputs inputs"]:
        """The weight written out."""
        return Fp8(self.weight, self.weight_scale).dequantize()

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if self.scheme.activations is not None:
            static = self.input_scale
            scale = largest_scale(x.abs().amax(dim=-1, keepdim=True)) if static is None else static.to(x.dtype)
            x = to_fp8(x, scale).dequantize()
        return F.linear(x, self.dequantize().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.scheme}"
