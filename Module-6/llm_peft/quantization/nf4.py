"""NF4, four bits a weight: sixteen values at quantiles of the normal distribution, in blocks of 64 with a scale each.

Dettmers et al. 2023, QLoRA (arXiv:2305.14314), section 3. The bytes are those of bitsandbytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from llm_peft.quantization.blocks import (
    Blocks,
    dequantize_blocks,
    dynamic_table,
    in_blocks,
    nearest,
    quantize_blocks,
    scale_blocks,
)

BLOCK = 64  # weights that share a scale
SCALES = 256  # scales that share a scale, with double quantisation
# The share of N(0, 1) below the largest value: halfway between the middles of the last of 15 and of the last of 16
# equal shares, 1 - (1/30 + 1/32) / 2, in the digits that bitsandbytes has of it.
OUTERMOST = 0.9677083


def nf4_table() -> Float[Tensor, "16"]:
    """The sixteen values, from -1 to 1: quantiles of N(0, 1) divided by the outermost.

    Eight steps lead from the outermost quantile on the right down to 0, and seven on the left up to it, so that 0 is a
    value of its own.
    """
    right = torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 9).double()).float()
    left = -torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 8).double()).float()
    values = torch.cat([left[:-1], right.flip(0)])
    return values / values.max()


def pack(nibbles: UInt8[Tensor, " numbers"]) -> UInt8[Tensor, " bytes"]:
    """Two numbers below 16 to a byte, the first in the high half; an odd last one stands beside a 0."""
    even = F.pad(nibbles, (0, len(nibbles) % 2))
    return even[::2] << 4 | even[1::2]


def unpack(packed: UInt8[Tensor, " bytes"], number: int) -> UInt8[Tensor, " numbers"]:
    """The numbers that `pack` put together."""
    return torch.stack([packed >> 4, packed & 15], dim=1).view(-1)[:number]


@dataclass(frozen=True)
class NF4Tensor:
    """A tensor in NF4.

    Attributes:
        packed: two weights a byte.
        absmax: a float32 a block of 64; with double quantisation None.
        double: the same in eight bits, less `offset`.
        offset: the mean of the scales, which is taken from them before they are quantised.
        shape: of the tensor.
    """

    packed: UInt8[Tensor, " bytes"]
    absmax: Float[Tensor, " blocks"] | None
    double: Blocks | None
    offset: Float[Tensor, ""] | None
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What it takes, the scales included."""
        parts = [self.packed, self.absmax, self.offset, *(self.double or ())]
        return sum(part.nbytes for part in parts if part is not None)

    def to(self, device: torch.device | str) -> NF4Tensor:
        """The same on another device."""
        double = None if self.double is None else Blocks(*(part.to(device) for part in self.double))
        absmax, offset = (None if part is None else part.to(device) for part in (self.absmax, self.offset))
        return replace(self, packed=self.packed.to(device), absmax=absmax, double=double, offset=offset)


def quantize_nf4(weight: Float[Tensor, "*shape"], double: bool = True) -> NF4Tensor:
    """Four bits a weight.

    Args:
        weight: finite numbers.
        double: keep the scales in eight bits: 4 + 8/64 + 32/(64 · 256) bits a weight instead of 4 + 32/64.

    Raises:
        ValueError: for numbers that are not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("a weight that is not finite has no scale; quantise a model that is whole")
    scaled, absmax = scale_blocks(weight.detach().reshape(-1), BLOCK)
    nibbles = nearest(scaled, nf4_table().to(weight.device)).to(torch.uint8).view(-1)[: weight.numel()]
    packed, shape = pack(nibbles), tuple(weight.shape)
    if not double:
        return NF4Tensor(packed, absmax, None, None, shape)
    offset = absmax.mean()
    blocks = quantize_blocks(absmax - offset, dynamic_table().to(weight.device), SCALES)
    return NF4Tensor(packed, None, blocks, offset, shape)


def scales(quantized: NF4Tensor) -> Float[Tensor, " blocks"]:
    """The scale of each block of 64."""
    if quantized.absmax is not None:
        return quantized.absmax
    assert quantized.double is not None and quantized.offset is not None
    table = dynamic_table().to(quantized.packed.device)
    return dequantize_blocks(quantized.double, table, SCALES) + quantized.offset


def dequantize_nf4(quantized: NF4Tensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
    """The weights that the bytes stand for."""
    number = torch.Size(quantized.shape).numel()
    values = nf4_table().to(quantized.packed.device)[unpack(quantized.packed, number).long()]
    blocks = in_blocks(values, BLOCK) * scales(quantized)[:, None]
    return blocks.view(-1)[:number].view(quantized.shape).to(dtype)
