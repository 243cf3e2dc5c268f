"""Floating-point formats as sign, exponent and mantissa: one number bit by bit, and whole tensors.

A pattern of bits is an integer: sign, then exponent, then mantissa. With exponent field e and a mantissa field m of p
bits it stands for (-1)^sign 2^(e - bias) (1 + m / 2^p), and with e = 0, where numbers are *subnormal*, for
(-1)^sign 2^(1 - bias) (m / 2^p). IEEE 754-2019, section 3.4; FP8: Micikevicius et al. 2022; FP4: OCP Microscaling 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

AnyShape = Float[Tensor, "..."]


@dataclass(frozen=True)
class Format:
    """A floating-point format.

    Attributes:
        name: as it is usually written.
        exponent_bits, mantissa_bits: beside them there is one bit for the sign.
        infinity: whether the highest exponent is kept for infinities and NaN, as in IEEE 754. Where it is not, all of
            its patterns are numbers, but the highest mantissa is NaN if `nan`.
        nan: whether there is a NaN.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    infinity: bool = True
    nan: bool = True

    @property
    def bits(self) -> int:
        """Of one number."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is taken off the exponent field: half of its range."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def max_pattern(self) -> int:
        """The pattern of the largest number."""
        last = 2 ** (self.exponent_bits + self.mantissa_bits) - 1
        if self.infinity:
            return last - 2**self.mantissa_bits
        return last - self.nan

    @property
    def max(self) -> float:
        """The largest number."""
        return decode(self.max_pattern, self)

    @property
    def min_normal(self) -> float:
        """The smallest number with a full mantissa, 2^(1 - bias)."""
        return 2.0 ** (1 - self.bias)

    @property
    def min_subnormal(self) -> float:
        """The smallest number above 0, 2^(1 - bias - p)."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next number, 2^-p. Rounding changes a number by at most half of it, relatively."""
        return 2.0**-self.mantissa_bits

    def exponent(self, value: float) -> int:
        """The exponent with which a number is written: floor(log2 |value|), not below that of the subnormals."""
        return max(math.frexp(value)[1] - 1, 1 - self.bias) if value else 1 - self.bias

    def spacing(self, value: float) -> float:
        """The distance between neighbours at `value`, also called an ulp: 2^(exponent - p)."""
        return 2.0 ** (self.exponent(value) - self.mantissa_bits)


FP32 = Format("fp32", 8, 23)
TF32 = Format("tf32", 8, 10)
FP16 = Format("fp16", 5, 10)
BF16 = Format("bf16", 8, 7)
E5M2 = Format("fp8 E5M2", 5, 2)
E4M3 = Format("fp8 E4M3", 4, 3, infinity=False)
E2M1 = Format("fp4 E2M1", 2, 1, infinity=False, nan=False)
FORMATS = {each.name: each for each in (FP32, TF32, FP16, BF16, E5M2, E4M3, E2M1)}


def decode(pattern: int, format: Format) -> float:
    """The number that a pattern of bits stands for.

    Raises:
        ValueError: for a pattern that has more bits than the format.
    """
    if not 0 <= pattern < 2**format.bits:
        raise ValueError(f"{pattern} is no pattern of {format.bits} bits ({format.name})")
    p = format.mantissa_bits
    sign, magnitude = pattern >> (format.bits - 1), pattern & (2 ** (format.bits - 1) - 1)
    e, m = magnitude >> p, magnitude & (2**p - 1)
    top = 2**format.exponent_bits - 1
    if format.infinity and e == top:
        value = math.nan if m else math.inf
    elif format.nan and not format.infinity and e == top and m == 2**p - 1:
        value = math.nan
    elif e == 0:
        value = 2.0 ** (1 - format.bias) * (m / 2**p)
    else:
        value = 2.0 ** (e - format.bias) * (1 + m / 2**p)
    return -value if sign else value


def encode(value: float, format: Format, saturate: bool = False) -> int:
    """The pattern of the nearest number; between two that are equally near, the one whose last bit is 0.

    Args:
        value: any float of Python's, which has 64 bits.
        format: of the pattern.
        saturate: what is too large becomes the largest number. Else it becomes infinity, and where there is none, NaN.

    Raises:
        ValueError: for a NaN, or a number too large, in a format that has no pattern for it.
    """
    sign = int(math.copysign(1.0, value) < 0) << (format.bits - 1)
    if math.isnan(value):
        return sign | nan_pattern(format)
    if math.isinf(value):
        return sign | (format.max_pattern if saturate else too_large_pattern(format))
    exponent = format.exponent(value)
    steps = round(abs(value) / 2.0 ** (exponent - format.mantissa_bits))  # Python rounds a half to the even neighbour
    # Full mantissas count from 2^p, which the exponent field accounts for; one that rounds up to 2^(p + 1) moves on to
    # the next exponent by itself.
    pattern = ((exponent + format.bias - 1) << format.mantissa_bits) + steps
    if pattern > format.max_pattern:
        pattern = format.max_pattern if saturate else too_large_pattern(format)
    return sign | pattern


def nan_pattern(format: Format) -> int:
    """A pattern of NaN."""
    if not format.nan:
        raise ValueError(f"{format.name} has no NaN")
    last = 2 ** (format.bits - 1) - 1
    return format.max_pattern + 1 + 2 ** (format.mantissa_bits - 1) if format.infinity else last


def too_large_pattern(format: Format) -> int:
    """The pattern for what is above the largest number: infinity, or NaN where there is none."""
    if format.infinity:
        return format.max_pattern + 1
    if not format.nan:
        raise ValueError(f"the value is above the largest of {format.name}, {format.max:g}; saturate=True takes that")
    return nan_pattern(format)


def cast(x: AnyShape, format: Format, saturate: bool = False) -> AnyShape:
    """Each number of a tensor rounded to the format, still in the tensor's own dtype: `encode` and `decode` at once.

    Args:
        x: float32 or float64.
        format: whose numbers are taken.
        saturate: as for `encode`; a format without infinities and NaN always saturates.
    """
    return on_grid(x, format, torch.round, saturate)


def stochastic_cast(
    x: AnyShape, format: Format, generator: torch.Generator | None = None, saturate: bool = True
) -> AnyShape:
    """Round each number to one of its two neighbours at random, to the nearer one more often: right on average.

    The upper one is taken with the probability (x - lower) / (upper - lower), so the mean of many roundings is x.
    """
    noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.float64)
    return on_grid(x, format, lambda steps: (steps + noise).floor(), saturate)


def on_grid(x: AnyShape, format: Format, to_steps: Callable[[Tensor], Tensor], saturate: bool) -> AnyShape:
    """Each number as whole steps of the format's spacing there.

    Args:
        to_steps: from a number of steps, with its fraction, to a whole one: how to round.
    """
    wide = x.double()
    exponent = (torch.frexp(wide).exponent - 1).clamp(min=1 - format.bias)
    spacing = torch.ldexp(torch.ones_like(wide), exponent - format.mantissa_bits)
    rounded = to_steps(wide.abs() / spacing) * spacing
    too_large = math.inf if format.infinity else math.nan
    if saturate or not (format.infinity or format.nan):
        too_large = format.max
    rounded = torch.where(rounded > format.max, too_large, rounded)
    return torch.where(wide.isnan(), wide, rounded.copysign(wide)).to(x.dtype)
