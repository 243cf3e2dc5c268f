"""Linear layers, embedding and cross-entropy whose matrices are cut over the ranks of a group.

N ranks hold one model; all of them see the same rows. Names say shapes: B rows, T positions, C the residual stream,
V the vocabulary. Shoeybi et al. 2019 (arXiv:1909.08053), section 3; the parts of the sequence: Korthikanti et al. 2022
(arXiv:2205.05198), section 4.2.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from llm_data.rows.documents import IGNORE_INDEX
from torch import Tensor, nn
from torch.nn import functional as F

from llm_scale.collectives import RING, Collectives, library

Group = dist.ProcessGroup | None  # None: all ranks


def collectives_of(group: Group, collectives: Collectives | None) -> Collectives:
    """The library's over a group, unless others are asked for.

    Raises:
        ValueError: for the ring by hand with a group: it goes round all ranks.
    """
    if collectives is RING and group is not None:
        raise ValueError("the ring by hand goes round all ranks; leave `group` out, or take the library's collectives")
    return library(group) if collectives is None else collectives


class CopyToRanks(torch.autograd.Function):
    """Before a column-parallel layer: nothing forward, and the sum over ranks backward (f of the paper).

    Every rank multiplies the same x by another part of the matrix, so that the gradient of x is the sum of theirs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, collectives: Collectives) -> Tensor:
        ctx.collectives = collectives
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.collectives.all_reduce(grad), None


class SumOverRanks(torch.autograd.Function):
    """After a row-parallel layer: the sum over ranks forward, and nothing backward (g of the paper)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, collectives: Collectives) -> Tensor:
        return collectives.all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class GatherTime(torch.autograd.Function):
    """(B, T / N, C) to (B, T, C): all-gather of the positions forward, reduce-scatter backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, collectives: Collectives) -> Tensor:
        ctx.collectives = collectives
        return collectives.all_gather(x.transpose(0, 1)).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.collectives.reduce_scatter(grad.transpose(0, 1)).transpose(0, 1), None


class ScatterTime(torch.autograd.Function):
    """(B, T, C) to (B, T / N, C): reduce-scatter over the positions forward, all-gather backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, collectives: Collectives) -> Tensor:
        ctx.collectives = collectives
        return collectives.reduce_scatter(x.transpose(0, 1)).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.collectives.all_gather(grad.transpose(0, 1)).transpose(0, 1), None


def enter(x: Tensor, collectives: Collectives, sequence: bool = False) -> Tensor:
    """Into a region where each rank has a part of every matrix; (B, T, C) comes out.

    Args:
        x: (B, T, C); in sequence parallelism (B, T / N, C), this rank's positions.
        collectives: of the group.
        sequence: whether the positions are cut outside the region.
    """
    out: Tensor = (GatherTime if sequence else CopyToRanks).apply(x, collectives)
    return out


def leave(x: Tensor, collectives: Collectives, sequence: bool = False) -> Tensor:
    """Out of it: the sum over ranks of (B, T, C), whole, or in sequence parallelism this rank's (B, T / N, C)."""
    out: Tensor = (ScatterTime if sequence else SumOverRanks).apply(x, collectives)
    return out


def part(tensor: Tensor, group: Group, dim: int, what: str) -> nn.Parameter:
    """This rank's N-th of a dimension, with memory of its own.

    Raises:
        ValueError: when the dimension is not a multiple of N.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if tensor.shape[dim] % size:
        raise ValueError(
            f"{what}={tensor.shape[dim]} cannot be divided among {size} ranks; make it a multiple of {size}, "
            "or take fewer tensor-parallel ranks"
        )
    return nn.Parameter(tensor.detach().chunk(size, dim)[rank].clone(memory_format=torch.contiguous_format))


class ColumnParallelLinear(nn.Module):
    """y = x W^T + b, each rank with its N-th of the outputs: the columns of W^T, which are the rows of `weight`.

    Args:
        linear: the whole layer, the same on every rank.
        group: the ranks that share it.
        sequence: x has this rank's positions only.
        entered: x has gone through `enter` already. Layers that read one x share it: one message in place of three.
        collectives: over the group; the library's by default, the ring by hand to count bytes.

    Raises:
        ValueError: when the outputs are not a multiple of N.
    """

    def __init__(
        self, linear: nn.Linear, group: Group = None, sequence: bool = False, entered: bool = False,
        collectives: Collectives | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sequence, self.entered = sequence, entered
        self.collectives = collectives_of(group, collectives)
        self.weight = part(linear.weight, group, 0, "out_features")  # (out / N, in)
        self.bias = None if linear.bias is None else part(linear.bias, group, 0, "out_features")

    def forward(self, x: Float[Tensor, "batch positions in"]) -> Float[Tensor, "batch time out_part"]:
        if not self.entered:
            x = enter(x, self.collectives, self.sequence)
        return F.linear(x, self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """y = x W^T + b, each rank with its N-th of the inputs; y is the sum of what the ranks compute.

    Its input is a column-parallel layer's output, so that nothing travels between the two.

    Args:
        linear: the whole layer, the same on every rank.
        group: the ranks that share it.
        sequence: give this rank's positions only.
        collectives: as for `ColumnParallelLinear`.

    Raises:
        ValueError: when the inputs are not a multiple of N.
    """

    def __init__(
        self, linear: nn.Linear, group: Group = None, sequence: bool = False, collectives: Collectives | None = None
    ) -> None:
        super().__init__()
        self.sequence, self.collectives = sequence, collectives_of(group, collectives)
        self.weight = part(linear.weight, group, 1, "in_features")  # (out, in / N)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())  # whole, added once
        if sequence and self.bias is not None:
            self.bias.register_hook(self.collectives.all_reduce)  # this rank has seen its positions only

    def forward(self, x: Float[Tensor, "batch time in_part"]) -> Float[Tensor, "batch positions out"]:
        y = leave(F.linear(x, self.weight), self.collectives, self.sequence)
        return y if self.bias is None else y + self.bias


def refuse_uneven(time: int, size: int) -> None:
    """Raise a ValueError for positions that cannot be divided among the ranks, with what to change."""
    if time % size:
        raise ValueError(
            f"{time} positions cannot be divided among {size} ranks; fill the rows up to a multiple of {size}, or "
            "leave sequence parallelism out"
        )


class VocabParallelEmbedding(nn.Module):
    """Each rank holds V / N rows; a token's row comes from the one that has it, and zeros from the others.

    Raises:
        ValueError: when V is not a multiple of N, or in sequence parallelism T is not.
    """

    def __init__(
        self, embedding: nn.Embedding, group: Group = None, sequence: bool = False,
        collectives: Collectives | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sequence, self.collectives = sequence, collectives_of(group, collectives)
        self.size = dist.get_world_size(group)
        self.weight = part(embedding.weight, group, 0, "vocab_size")  # (V / N, C)
        self.first = dist.get_rank(group) * len(self.weight)

    def forward(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch positions hidden"]:
        if self.sequence:
            refuse_uneven(ids.shape[1], self.size)
        local = ids - self.first
        absent = (local < 0) | (local >= len(self.weight))
        rows = F.embedding(local.masked_fill(absent, 0), self.weight).masked_fill(absent[..., None], 0.0)
        return leave(rows, self.collectives, self.sequence)


def vocab_parallel_cross_entropy(
    logits: Float[Tensor, "tokens vocab_part"],
    targets: Int[Tensor, " tokens"],
    group: Group = None,
    collectives: Collectives | None = None,
) -> Float[Tensor, " tokens"]:
    """-ln softmax(logits)[target] of each token, in nats, the same on every rank, from each rank's V / N logits.

    A token's largest logit, sum of exponentials and target logit travel: three numbers in place of V. Shoeybi et al.
    2019, section 3. A token whose target is -100 costs nothing.
    """
    way = collectives_of(group, collectives)
    logits = logits.float()
    with torch.no_grad():  # it only keeps exp in range: the loss does not depend on it
        largest = way.all_gather(logits.max(dim=1).values[None]).max(dim=0).values
    shifted = logits - largest[:, None]
    total: Tensor = SumOverRanks.apply(shifted.exp().sum(dim=1), way)
    local = targets - dist.get_rank(group) * logits.shape[1]
    absent = (local < 0) | (local >= logits.shape[1])
    mine = shifted.gather(1, local.masked_fill(absent, 0)[:, None])[:, 0].masked_fill(absent, 0.0)
    chosen: Tensor = SumOverRanks.apply(mine, way)
    return torch.where(targets == IGNORE_INDEX, 0.0, total.log() - chosen)


@torch.no_grad()
def gather_columns(x: Tensor, group: Group = None, collectives: Collectives | None = None) -> Tensor:
    """All ranks' parts of the last dimension side by side: whole logits, to look at or to sample from. No gradient."""
    return collectives_of(group, collectives).all_gather(x.movedim(-1, 0)).movedim(0, -1)
