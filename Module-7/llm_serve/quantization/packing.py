"""Integers of a few bits, laid one behind the other into words of 32 bits, as compressed-tensors has them.

A row is one stream of bits: integer i has the bits from i · bits on, its lowest bit first, and may end in the next
word. It is stored from 0 up, so that -8 of four bits is 0. The last word of a row is filled up with zeros.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int8, Int32
from torch import Tensor
from torch.nn import functional as F


def pack(numbers: Int8[Tensor, "rows columns"], bits: int) -> Int32[Tensor, "rows words"]:
    """Rows of integers from -2^(bits - 1) to 2^(bits - 1) - 1 as words: ceil(columns · bits / 32) a row.

    Raises:
        ValueError: for an integer that has more bits.
    """
    offset = 2 ** (bits - 1)
    if numbers.numel() and not -offset <= int(numbers.min()) <= int(numbers.max()) < offset:
        raise ValueError(f"integers from {int(numbers.min())} to {int(numbers.max())} have more than {bits} bits")
    rows, columns = numbers.shape
    raw = (numbers.cpu().to(torch.int16) + offset).to(torch.uint8).numpy()
    stream = np.unpackbits(raw[..., None], axis=-1, count=bits, bitorder="little").reshape(rows, columns * bits)
    packed = torch.from_numpy(np.packbits(stream, axis=-1, bitorder="little"))
    words = -(-columns * bits // 32)
    whole = F.pad(packed, (0, 4 * words - packed.shape[1])).numpy().view("<i4").astype(np.int32)
    return torch.from_numpy(whole).to(numbers.device)


def unpack(words: Int32[Tensor, "rows words"], bits: int, columns: int) -> Int8[Tensor, "rows columns"]:
    """The integers that `pack` put into words.

    Raises:
        ValueError: for too few words, or too many.
    """
    needed = -(-columns * bits // 32)
    if words.shape[1] != needed:
        raise ValueError(f"{columns} integers of {bits} bits take {needed} words, and there are {words.shape[1]}")
    if bits in (4, 8):  # no integer ends in another byte: a few operations of torch, on any device
        stream = words.contiguous().view(torch.uint8)
        numbers = stream if bits == 8 else torch.stack([stream & 15, stream >> 4], dim=-1).flatten(1)
        return (numbers[:, :columns].to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    unpacked = np.unpackbits(words.cpu().numpy().astype("<i4").view(np.uint8), axis=-1, bitorder="little")
    parts = unpacked[:, : columns * bits].reshape(len(words), columns, bits)
    raw = torch.from_numpy(np.packbits(parts, axis=-1, bitorder="little")[..., 0])
    return (raw.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8).to(words.device)
