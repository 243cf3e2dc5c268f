"""Integer grids: what a weight of few bits can be, and the nearest such weight.

A row of a weight matrix is cut into groups; each has a scale, and without symmetry a zero point. An integer q stands
for (q - zero_point) · scale. The scales and the integers are those of compressed-tensors, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

Weight = Float[Tensor, "outputs inputs"]
Scales = Float[Tensor, "outputs groups"]
Numbers = Int8[Tensor, "outputs inputs"]


@dataclass(frozen=True)
class WeightScheme:
    """How the weights of linear layers become integers.

    Attributes:
        bits: of an integer, 2 to 8.
        symmetric: a scale alone, from the largest magnitude; else a zero point too, from the smallest and the largest.
        group_size: neighbours in a row that share a scale; None for the whole row, an output channel.
        actorder: of GPTQ: take the columns with the largest inputs first. The groups stay where they are.
        damping: of GPTQ: share of the Hessian's mean diagonal that is added to its diagonal.

    Raises:
        ValueError: for a value out of its range, with the range.
    """

    bits: int = 4
    symmetric: bool = True
    group_size: int | None = 64
    actorder: bool = False
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits={self.bits!r}: integers of 2 to 8 bits are made here; take one of these")
        size = self.group_size
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(
                f"group_size={size!r}: give a whole number above 0, or None for one scale an output channel"
            )
        if not 0 < self.damping < math.inf:
            raise ValueError(f"damping={self.damping!r}: give a number above 0; 0.01 is usual")

    @property
    def lowest(self) -> int:
        """The smallest integer."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest integer."""
        return 2 ** (self.bits - 1) - 1

    def groups(self, inputs: int) -> int:
        """Groups of a row of `inputs` weights.

        Raises:
            ValueError: when the group size does not divide the row.
        """
        size = self.group_size or inputs
        if inputs % size:
            fitting = [each for each in (256, 128, 64, 32, 16, 8) if inputs % each == 0 and each <= size]
            way = f"take {fitting[0]}, or None" if fitting else "take None, a scale an output channel"
            raise ValueError(f"group_size={size} does not divide a row of {inputs} weights; {way}")
        return inputs // size

    def bits_a_weight(self, inputs: int, scale_bits: int = 16) -> float:
        """Bits of a weight with its share of the scale and of the zero point."""
        shared = scale_bits + (0 if self.symmetric else self.bits)
        return self.bits + shared * self.groups(inputs) / inputs


class Grid(NamedTuple):
    """What the integers of a matrix stand for.

    Attributes:
        scale: of each group, in the dtype of the weights.
        zero_point: the integer that stands for 0; None where that is 0.
    """

    scale: Scales
    zero_point: Int8[Tensor, "outputs groups"] | None


class IntWeight(NamedTuple):
    """A matrix in integers: `numbers` on a `grid`."""

    numbers: Numbers
    grid: Grid

    def dequantize(self) -> Weight:
        """The weights that the integers stand for, in the dtype of the scales."""
        scale, zero_point = self.grid
        cut = self.numbers.unflatten(-1, (scale.shape[-1], -1)).to(scale.dtype)  # (outputs, groups, group size)
        if zero_point is not None:
            cut = cut - zero_point.to(scale.dtype)[..., None]
        return (cut * scale[..., None]).flatten(-2)


def fit_grid(weight: Weight, scheme: WeightScheme) -> Grid:
    """Scales (and zero points) with which the smallest and the largest weight of each group fit into the integers.

    0 is always one of the values. With symmetry the largest magnitude M becomes ±(2^bits - 1) / 2, so that 4 bits have
    the scale M / 7.5: -M is rounded to -8 or -7, and M, half a step above the largest integer, to 7.

    Raises:
        ValueError: when the groups do not fit, or a weight is not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("a weight that is not finite has no scale; quantise a model that is whole")
    cut = weight.unflatten(-1, (scheme.groups(weight.shape[-1]), -1))
    low, high = cut.amin(dim=-1).clamp(max=0), cut.amax(dim=-1).clamp(min=0)
    steps = scheme.highest - scheme.lowest
    scale = torch.maximum(-low, high) / (steps / 2) if scheme.symmetric else (high - low) / steps
    # A group of zeros: any scale serves, and this is theirs.
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
    if scheme.symmetric:
        return Grid(scale, None)
    zero_point = (scheme.lowest - low / scale).clamp(scheme.lowest, scheme.highest).round()
    return Grid(scale, zero_point.to(torch.int8))


def round_to_grid(weight: Weight, grid: Grid, scheme: WeightScheme) -> IntWeight:
    """Each weight as the nearest integer of a grid; of two that are equally near, the even one."""
    cut = weight.unflatten(-1, (grid.scale.shape[-1], -1)) / grid.scale[..., None]
    if grid.zero_point is not None:
        cut = cut + grid.zero_point.to(cut.dtype)[..., None]
    numbers = cut.clamp(scheme.lowest, scheme.highest).round().to(torch.int8)
    return IntWeight(numbers.flatten(-2), grid)


def round_to_nearest(weight: Weight, scheme: WeightScheme) -> IntWeight:
    """The nearest weight on a grid of its own: no data, and no weight knows of another.

    Raises:
        ValueError: as `fit_grid`.
    """
    return round_to_grid(weight, fit_grid(weight, scheme), scheme)
