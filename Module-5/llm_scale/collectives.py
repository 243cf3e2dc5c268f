"""The collectives by hand, on sends and receives between neighbours of a ring, with every byte on the wire counted.

N ranks, P values in a tensor. Each function takes a tensor of the same shape on every rank. `WIRE.sent` counts what
this rank has sent. The library's forms of the same are `torch.distributed.all_reduce` and its kin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Wire:
    """What this rank has sent: bytes and messages."""

    sent: int = 0
    messages: int = 0

    def clear(self) -> None:
        """Begin at 0."""
        self.sent = self.messages = 0

    def __reduce__(self) -> str:
        return "WIRE"  # sent to a rank, it is that rank's own


WIRE = Wire()


def exchange(outgoing: Tensor) -> Tensor:
    """Send to the next rank of the ring, and receive from the one before, at the same time."""
    rank, size = dist.get_rank(), dist.get_world_size()
    outgoing, incoming = outgoing.contiguous(), torch.empty_like(outgoing, memory_format=torch.contiguous_format)
    # Both at once: if each rank sent before it received, all could wait for a receiver.
    work = dist.batch_isend_irecv([
        dist.P2POp(dist.isend, outgoing, (rank + 1) % size),
        dist.P2POp(dist.irecv, incoming, (rank - 1) % size),
    ])  # fmt: skip
    for each in work:
        each.wait()
    WIRE.sent += outgoing.nbytes
    WIRE.messages += 1
    return incoming


def ring_reduce_scatter(tensor: Tensor) -> Tensor:
    """The sum over all ranks of this rank's part: of N equal parts of the first dimension, the rank-th.

    Each rank sends (N - 1) / N of the tensor.

    Raises:
        ValueError: when the first dimension is not a multiple of N.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    parts = list(split(tensor, size))
    for step in range(size - 1):
        # A part starts at the rank after its owner, and goes round: every rank on its way adds its own.
        arrived = exchange(parts[(rank - 1 - step) % size])
        parts[(rank - 2 - step) % size] = parts[(rank - 2 - step) % size] + arrived
    return parts[rank].clone()


def ring_all_gather(part: Tensor) -> Tensor:
    """All ranks' parts, one after the other; each rank sends N - 1 times its part."""
    rank, size = dist.get_rank(), dist.get_world_size()
    parts = [part] * size
    for step in range(size - 1):
        parts[(rank - 1 - step) % size] = exchange(parts[(rank - step) % size])
    return torch.cat(parts)


def ring_all_reduce(tensor: Tensor) -> Tensor:
    """The sum over all ranks, on every rank: reduce-scatter, then all-gather. Each rank sends 2 (N - 1) / N of it.

    The tensor is filled up with zeros to N equal parts.
    """
    size = dist.get_world_size()
    flat = torch.nn.functional.pad(tensor.flatten(), (0, -tensor.numel() % size))
    return ring_all_gather(ring_reduce_scatter(flat))[: tensor.numel()].view_as(tensor)


def naive_all_reduce(tensor: Tensor) -> Tensor:
    """The same sum by passing whole tensors round the ring: each rank sends N - 1 times all of it."""
    total, passing = tensor.clone(), tensor
    for _ in range(dist.get_world_size() - 1):
        passing = exchange(passing)
        total += passing
    return total


def ring_broadcast(tensor: Tensor, source: int = 0) -> Tensor:
    """The source's tensor on every rank, passed on along the ring; each rank but the last sends it once."""
    rank, size = dist.get_rank(), dist.get_world_size()
    place = (rank - source) % size  # in the line that begins at the source
    result = tensor.contiguous().clone()
    if place > 0:
        dist.recv(result, (rank - 1) % size)
    if place < size - 1:
        dist.send(result, (rank + 1) % size)
        WIRE.sent += result.nbytes
        WIRE.messages += 1
    return result


def split(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    """N equal parts of the first dimension.

    Raises:
        ValueError: when it is not a multiple of N.
    """
    if not tensor.ndim or len(tensor) % size:
        raise ValueError(f"shape {tuple(tensor.shape)} has no {size} equal parts; fill it up to a multiple of {size}")
    return tensor.chunk(size)


class Collectives(NamedTuple):
    """What parallel code asks for, so that the ring and the library can take each other's place.

    Attributes:
        all_reduce: a tensor to the sum over all ranks.
        reduce_scatter: N equal parts of the first dimension to the sum of this rank's.
        all_gather: a part to all ranks' parts, one after the other.
    """

    all_reduce: Callable[[Tensor], Tensor]
    reduce_scatter: Callable[[Tensor], Tensor]
    all_gather: Callable[[Tensor], Tensor]


def _newest(name: str, older: str) -> Callable[..., Any]:
    """A collective by the name that torch 2.13 gave it, or by the one that it had before."""
    found: Callable[..., Any] = getattr(dist, name, None) or getattr(dist, older)
    return found


def library(group: dist.ProcessGroup | None = None) -> Collectives:
    """torch's collectives over the ranks of a group; over all by default."""

    def all_reduce(tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    def reduce_scatter(tensor: Tensor) -> Tensor:
        part = split(tensor, dist.get_world_size(group))[0]
        result = torch.empty_like(part, memory_format=torch.contiguous_format)
        _newest("reduce_scatter_single", "reduce_scatter_tensor")(result, tensor.contiguous(), group=group)
        return result

    def all_gather(part: Tensor) -> Tensor:
        result = part.new_empty(len(part) * dist.get_world_size(group), *part.shape[1:])
        _newest("all_gather_single", "all_gather_into_tensor")(result, part.contiguous(), group=group)
        return result

    return Collectives(all_reduce, reduce_scatter, all_gather)


RING = Collectives(ring_all_reduce, ring_reduce_scatter, ring_all_gather)
LIBRARY = library()


def from_all(value: float) -> list[float]:
    """This number of each rank, by rank; every rank calls it. Of a process by itself, its own."""
    values: list[Any] = [value]
    if dist.is_initialized():
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values
