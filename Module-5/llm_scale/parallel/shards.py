"""A tensor's share for a rank, and the share's way back: what all three stages of ZeRO build on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from llm_scale.collectives import Collectives

MESSAGE = 25 * 2**20  # bytes
# A step of these changes each number by its own gradient and state alone, so that a part of a tensor is stepped as in
# the whole. Not so LBFGS, Muon, Adafactor.
ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")


def filled(tensor: Tensor, size: int) -> Tensor:
    """The tensor as one row, filled up with zeros to a multiple of N."""
    return F.pad(tensor.flatten(), (0, -tensor.numel() % size))


def share_size(number: int) -> int:
    """Numbers of a tensor that a rank holds at most, of so many."""
    return -(-number // dist.get_world_size())


def share(tensor: Tensor) -> Tensor:
    """This rank's N-th part of a tensor's row, a view of it; the last ranks' may be shorter, or empty."""
    size = share_size(tensor.numel())
    return tensor.flatten()[dist.get_rank() * size : (dist.get_rank() + 1) * size]


def master(model: nn.Module) -> list[nn.Parameter]:
    """This rank's share of every parameter, in float32: what an optimiser then works on.

    Of a model in float32 it is a view of the model's own weights and takes no memory.
    """
    return [nn.Parameter(share(parameter.detach()).float()) for parameter in model.parameters()]


def gather(shares: Sequence[Tensor], targets: Sequence[Tensor], collectives: Collectives) -> None:
    """Write all ranks' shares into whole tensors, in the targets' format: one message for all of them."""
    size, dtype = dist.get_world_size(), targets[0].dtype  # of 16 bits there are half the bytes on the wire
    widths = [share_size(target.numel()) for target in targets]
    message = torch.cat([
        F.pad(part.detach().to(dtype), (0, width - part.numel())) for part, width in zip(shares, widths, strict=True)
    ])  # fmt: skip
    columns = collectives.all_gather(message).view(size, -1).split(widths, dim=1)
    for target, column in zip(targets, columns, strict=True):
        target.data.copy_(column.flatten()[: target.numel()].view_as(target))


def gather_all(shares: Sequence[Tensor], targets: Sequence[Tensor], collectives: Collectives) -> None:
    """`gather` in messages of some 25 MB, so that no second copy of the whole model exists."""
    begin, total = 0, 0
    for place, target in enumerate(targets):
        total += target.nbytes
        if total >= MESSAGE or place == len(targets) - 1:
            gather(shares[begin : place + 1], targets[begin : place + 1], collectives)
            begin, total = place + 1, 0


def reduce(gradients: Sequence[Tensor], collectives: Collectives) -> list[Tensor]:
    """This rank's share of each gradient's mean over the ranks, in float32: one message for all of them."""
    size = dist.get_world_size()
    rows = torch.cat([filled(gradient, size).view(size, -1) for gradient in gradients], dim=1)
    parts = (collectives.reduce_scatter(rows).flatten().float() / size).split(
        [share_size(gradient.numel()) for gradient in gradients]
    )
    return [part[: share(gradient).numel()] for part, gradient in zip(parts, gradients, strict=True)]


def clip_grad_norm_(shares: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Clip by the norm of the whole gradient: each rank knows the squares of its shares alone. Returns the norm."""
    gradients = [part.grad for part in shares if part.grad is not None]
    square = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    dist.all_reduce(square)
    norm = square.sqrt()
    for gradient in gradients:
        gradient *= (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return norm


def refuse_unless_elementwise(optimizer: type[torch.optim.Optimizer]) -> None:
    """Raise a ValueError for an optimiser whose step on a part is not the part of its step on the whole."""
    if optimizer.__name__ not in ELEMENTWISE:
        raise ValueError(
            f"{optimizer.__name__} steps a parameter as a whole, and a rank holds a part of it; take one of "
            + ", ".join(ELEMENTWISE)
        )
