"""Microscaling formats: blocks of 32 numbers in a few bits each, and one power of two that scales the block.

OCP Microscaling Formats 1.0, section 6.3: the power of two is chosen so that the block's largest number lands in the
highest binade of the format. MXFP8 takes 8.25 bits a number, MXFP4 4.25.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_precision.numbers.formats import E2M1, E4M3, E5M2, Format, cast

BLOCK = 32
SCALE_BIAS = 127  # a scale is stored as a bare exponent of 8 bits (E8M0)
ELEMENTS = {"MXFP8 E4M3": E4M3, "MXFP8 E5M2": E5M2, "MXFP4": E2M1}


class Blocks(NamedTuple):
    """Numbers of a format and the exponent of two that scales each block of them.

    Attributes:
        elements: (..., blocks, block), each on the format's grid.
        exponents: (..., blocks); the numbers stand for elements times 2^exponent.
    """

    elements: Float[Tensor, "... blocks block"]
    exponents: Int[Tensor, "... blocks"]


def to_blocks(x: Float[Tensor, "... last"], format: Format, block: int = BLOCK) -> Blocks:
    """Cut the last dimension into blocks, scale each by a power of two, and round.

    Args:
        x: float32, finite.
        format: of the elements.
        block: numbers that share a scale.

    Raises:
        ValueError: when the last dimension is no multiple of the block, or a number is not finite.
    """
    if x.shape[-1] % block:
        raise ValueError(f"the last dimension, {x.shape[-1]}, is no multiple of the block, {block}; pad it with zeros")
    if not torch.isfinite(x).all():
        raise ValueError("a block has one scale: a number that is not finite would spoil its 31 neighbours")
    cut = x.unflatten(-1, (-1, block))  # (..., blocks, block)
    # floor(log2 of the largest); a block of zeros has none, and takes the lowest scale.
    largest = torch.frexp(cut.abs().amax(dim=-1)).exponent - 1
    largest = torch.where(cut.any(dim=-1), largest, -SCALE_BIAS)
    highest = math.frexp(format.max)[1] - 1  # of the format: 8 for E4M3, whose largest number is 448
    exponents = (largest - highest).clamp(min=-SCALE_BIAS, max=SCALE_BIAS)
    scaled = cut.double() / torch.exp2(exponents.double())[..., None]
    return Blocks(cast(scaled, format, saturate=True).to(x.dtype), exponents)


def from_blocks(blocks: Blocks) -> Float[Tensor, "... last"]:
    """The numbers that blocks stand for, in their own dtype."""
    wide = blocks.elements.double() * torch.exp2(blocks.exponents.double())[..., None]
    return wide.flatten(-2).to(blocks.elements.dtype)


def bits_a_number(format: Format, block: int = BLOCK) -> float:
    """Bits of a number with its share of the scale."""
    return format.bits + 8 / block
