"""Block-wise quantisation: each block of numbers is divided by its largest, and each quotient becomes the nearest entry
of a table. Dettmers et al. 2021, section 2.1 (arXiv:2110.02861).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

GRID = 65_535  # bitsandbytes' CPU kernel looks an entry up by the nearest of 65,536 even points from -1 to 1


class Blocks(NamedTuple):
    """Entries of a table, and what each block was divided by."""

    indices: UInt8[Tensor, " numbers"]
    absmax: Float[Tensor, " blocks"]


def in_blocks(values: Float[Tensor, " numbers"], size: int) -> Float[Tensor, "blocks size"]:
    """Rows of `size` numbers, the last one filled up with zeros."""
    return F.pad(values, (0, -len(values) % size)).view(-1, size)


def scale_blocks(values: Float[Tensor, " numbers"], size: int) -> tuple[Float[Tensor, "blocks size"], Tensor]:
    """Each block divided by its largest magnitude, and those magnitudes.

    As bitsandbytes does it: times the reciprocal, which rounds otherwise than a division.
    """
    blocks = in_blocks(values.float(), size)
    absmax = blocks.abs().amax(dim=1)
    return blocks * (1 / absmax.clamp(min=1e-38))[:, None], absmax


def nearest(values: Float[Tensor, "*shape"], table: Float[Tensor, " entries"]) -> Tensor:
    """The entry of a sorted table that is nearest to each value."""
    return torch.bucketize(values, (table[:-1] + table[1:]) / 2)


def dynamic_table(signed: bool = True) -> Float[Tensor, "256"]:
    """256 numbers from -1 (or 0) to 1, denser towards 0: an exponent of as many bits as it needs, and a fraction.

    Each of the seven decades below 1 has twice as many entries as the one below it, which are the middles of equal
    steps from 0.1 to 1; 0 and 1 are entries too. Dettmers et al. 2021, section 2.2.
    """
    entries = [0.0, 1.0]
    for decade in range(7):
        steps = torch.linspace(0.1, 1, 2 ** (decade + (0 if signed else 1)) + 1)
        middles = (10.0 ** (decade - 6) * (steps[:-1] + steps[1:]) / 2).tolist()
        entries += middles + ([-each for each in middles] if signed else [])
    return torch.tensor(sorted(entries))


def quantize_blocks(values: Float[Tensor, "*shape"], table: Float[Tensor, "256"], size: int = 256) -> Blocks:
    """Eight bits a number, and a float32 a block; the byte of each number is that of bitsandbytes on a CPU.

    A block of zeros has no quotients: its bytes are 0, and stand for 0 all the same.
    """
    blocks = in_blocks(values.reshape(-1).float(), size)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1 / absmax)[:, None]).nan_to_num(-1.0)
    steps = torch.arange(GRID + 1, device=table.device).float() * (2 / GRID) - 1
    place = ((scaled + 1) * (GRID / 2) + 0.5).long().clamp(0, GRID)
    indices = nearest(steps, table)[place].to(torch.uint8)
    return Blocks(indices.view(-1)[: values.numel()], absmax)


def dequantize_blocks(blocks: Blocks, table: Float[Tensor, "256"], size: int = 256) -> Float[Tensor, " numbers"]:
    """The numbers that the bytes stand for."""
    entries = in_blocks(table[blocks.indices.long()], size)
    return (entries * blocks.absmax[:, None]).view(-1)[: len(blocks.indices)]
