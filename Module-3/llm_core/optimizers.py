"""AdamW from its paper, Adam with L2 in the gradient beside it, and which parameters decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class AdamW(Optimizer):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`. Loshchilov and Hutter 2019, algorithm 2.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay rates of the averages of the gradient and of its square.
        eps: beside the root.
        weight_decay: share of a weight that a step takes away, times the learning rate.
        l2: put the decay into the gradient instead, as Adam with L2 regularisation does: another algorithm.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, l2: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "l2": l2})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "l2")}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, self.state[parameter], **options)
        return loss


def update(
    parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], *, lr: float, betas: tuple[float, float],
    eps: float, weight_decay: float, l2: bool,
) -> None:  # fmt: skip
    """One step of one parameter, in place."""
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
    state["step"] += 1
    if l2:
        gradient = gradient + weight_decay * parameter
    else:
        parameter.mul_(1 - lr * weight_decay)
    state["exp_avg"].lerp_(gradient, 1 - betas[0])
    state["exp_avg_sq"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    mean = state["exp_avg"] / (1 - betas[0] ** state["step"])
    square = state["exp_avg_sq"] / (1 - betas[1] ** state["step"])
    parameter.sub_(lr * mean / (square.sqrt() + eps))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices, which decay, and the rest (norms, biases), which do not. A tied matrix counts once."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def rate_factor(step: int, warmup_steps: int, steps: int, min_lr_ratio: float) -> float:
    """The share of the highest learning rate that a step takes: a line up, half a cosine down, and level from there.

    Loshchilov and Hutter 2017, eq. 5, behind a warm-up; equal to transformers' `cosine_warmup_with_min_lr` up to the
    last step, past which that one rises again.

    Args:
        step: counted from 0.
        warmup_steps: the step of this number is the first of the cosine.
        steps: of the whole run; its last has `min_lr_ratio`.
        min_lr_ratio: share that is left at the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (min(step, steps - 1) - warmup_steps + 1) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done)) * (1 - min_lr_ratio) + min_lr_ratio


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The gradients that its next step takes."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
