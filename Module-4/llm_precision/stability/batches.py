"""A step over several batches, and the norm that clips it.

`total_loss(batch)` gives the sum of a batch's losses and the number of its targets, as `BabyGPT.loss` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TotalLoss = Callable[[Any], tuple[Tensor, Tensor]]


def accumulate(total_loss: TotalLoss, batches: Iterable[Any], parameters: Iterable[Tensor]) -> Float[Tensor, ""]:
    """Leave in `.grad` the gradients of the mean over all targets of all batches, and return that mean.

    Sums add up; means do not. So each batch's sum is differentiated, and the gradients are divided once, by the number
    of targets of the whole step, which is known after the last batch. They must be cleared before.

    Raises:
        ValueError: when no batch has a target.
    """
    whole, targets = torch.zeros(()), 0
    for batch in batches:
        total, count = total_loss(batch)
        total.backward()
        whole, targets = whole + total.detach(), targets + int(count)
    if not targets:
        raise ValueError("no batch has a target: there is no mean to take")
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(targets)
    return whole / targets


def mean_of_means(total_loss: TotalLoss, batches: Sequence[Any]) -> Float[Tensor, ""]:
    """The mistake: each batch's own mean, divided by the number of batches. It weighs a target by how few there are
    beside it, and is the right loss only where all batches have equally many."""
    whole = torch.zeros(())
    for batch in batches:
        total, targets = total_loss(batch)
        loss = total / targets / len(batches)
        loss.backward()
        whole = whole + loss.detach()
    return whole


@torch.no_grad()
def clip_by_global_norm(parameters: Iterable[Tensor], limit: float) -> Float[Tensor, ""]:
    """Shrink all gradients by one factor, so that their common norm is at most `limit`; returns the norm before.

    As `torch.nn.utils.clip_grad_norm_`, which adds 1e-6 to the norm it divides by. Pascanu et al. 2013, algorithm 1.

    Raises:
        ValueError: for a limit that is not above 0, or when there is no gradient.
    """
    if not limit > 0:
        raise ValueError(f"limit={limit} must be above 0")
    gradients = [each.grad for each in parameters if each.grad is not None]
    if not gradients:
        raise ValueError("no parameter has a gradient; call backward first")
    norm = torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
    return norm
