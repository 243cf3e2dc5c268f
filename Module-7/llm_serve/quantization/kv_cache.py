"""Keys and values in fewer bits: integers of a head's vector for one token, and a scale for each such vector.

A vector is rounded once, when its token comes, and read at every token after it. A scale of its own for each token and
head needs no calibration, and a vector that is far larger than others takes no bits from them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from llm_serve.quantization.fp8 import largest_scale, to_fp8

KVFormat = Literal["int8", "int4", "fp8"]
FORMATS: tuple[KVFormat, ...] = get_args(KVFormat)
HIGHEST = {"int8": 127, "int4": 7}  # as many steps below 0: the largest magnitude is met exactly
SCALE = torch.float16  # two bytes a vector


class QuantizedVectors(NamedTuple):
    """Vectors in few bits.

    Attributes:
        numbers: (..., head_dim) of int8 or float8; with four bits (..., head_dim / 2) of uint8, two to a byte.
        scale: (..., 1), float16.
    """

    numbers: Tensor
    scale: Float[Tensor, "... one"]


def check_format(format: str, head_dim: int) -> None:
    """Raise a ValueError for a format that is not one of these, or a width that it cannot pack."""
    if format not in FORMATS:
        raise ValueError(f"cache format {format!r} is unknown; choose one of {', '.join(FORMATS)}")
    if format == "int4" and head_dim % 2:
        raise ValueError(f"head_dim={head_dim} is odd, and int4 packs two numbers to a byte; take int8")


def quantize_vectors(x: Float[Tensor, "*batch head_dim"], format: KVFormat = "int8") -> QuantizedVectors:
    """Each vector (the last dimension) in few bits, divided by its largest magnitude.

    The scale is rounded up to float16, so that no number leaves the range.

    Args:
        x: keys or values, (..., head_dim), finite; below 458,528 with int4, where float16 ends for the scale.
        format: "int8", "int4" or "fp8" (E4M3).

    Raises:
        ValueError: for an unknown format, or an odd width with int4.
    """
    check_format(format, x.shape[-1])
    largest = x.float().abs().amax(dim=-1, keepdim=True)
    scale = _rounded_up(largest_scale(largest) if format == "fp8" else largest / HIGHEST[format])
    wide = x.float() / scale.float()
    if format == "fp8":
        return QuantizedVectors(to_fp8(wide, torch.ones(())).numbers, scale)
    numbers = wide.round().to(torch.int8)
    if format == "int4":
        low, high = (numbers & 15).view(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
        numbers = low | high << 4
    return QuantizedVectors(numbers, scale)


def dequantize_vectors(
    vectors: QuantizedVectors, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch head_dim"]:
    """The vectors that these numbers stand for."""
    numbers = vectors.numbers
    if numbers.dtype == torch.uint8:
        pairs = torch.stack([numbers << 4, numbers], dim=-1).flatten(-2).view(torch.int8)
        numbers = pairs >> 4  # of a number with a sign: it is copied in from the left
    return (numbers.float() * vectors.scale.float()).to(dtype)


def error_bound(vectors: QuantizedVectors, format: KVFormat) -> Float[Tensor, "... one"]:
    """The most that a number of each vector can have changed: half a step, which for integers is everywhere the same.

    With E4M3 it is half of the widest step, 32 between 256 and 448; smaller numbers have smaller steps.
    """
    return vectors.scale.float() * (16 if format == "fp8" else 0.5)


def bytes_a_vector(head_dim: int, format: KVFormat | None, width: int = 2) -> int:
    """Bytes of a vector with its scale; None is a cache that is not quantised, of `width` bytes a number."""
    if format is None:
        return width * head_dim
    check_format(format, head_dim)
    return (head_dim // 2 if format == "int4" else head_dim) + SCALE.itemsize


def _rounded_up(scale: Float[Tensor, "... one"]) -> Float[Tensor, "... one"]:
    """The next float16 that is not below; of zeros a tiny one."""
    near = scale.to(SCALE)
    up = torch.where(near.float() < scale, torch.nextafter(near, torch.full_like(near, torch.inf)), near)
    return up.clamp(min=torch.finfo(SCALE).smallest_normal)
