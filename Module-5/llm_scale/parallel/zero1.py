"""ZeRO, stage 1: the optimiser's states are sharded; weights and gradients are whole on every rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm_scale.collectives import LIBRARY, Collectives
from llm_scale.parallel.ddp import same_start
from llm_scale.parallel.shards import clip_grad_norm_, gather_all, master, refuse_unless_elementwise, share


class Zero1:
    """Around any element-wise optimiser of torch: each rank steps its share of the weights, then all gather them.

    Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054), section 5.1. A step sends what data parallel sends.

    Args:
        model: the same on every rank from here on.
        optimizer: its class; `options` are its arguments.
        collectives: the library's, or the ring by hand.

    Raises:
        ValueError: for an optimiser that is not element-wise.
    """

    def __init__(
        self, model: nn.Module, optimizer: type[torch.optim.Optimizer], collectives: Collectives = LIBRARY,
        **options: Any,
    ) -> None:  # fmt: skip
        refuse_unless_elementwise(optimizer)
        same_start(model)
        self.parameters, self.collectives = list(model.parameters()), collectives
        self.shares = master(model)
        self.optimizer = optimizer(self.shares, **options)  # for a schedule too: these are the rates that count

    def reduce(self) -> None:
        """Average the whole gradients, and give the optimiser its shares of them; after the backward passes."""
        for parameter, part in zip(self.parameters, self.shares, strict=True):
            if not parameter.requires_grad:
                continue
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.collectives.all_reduce(gradient) / dist.get_world_size()
            part.grad = share(parameter.grad).float()

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip by the norm of the whole gradient; between `reduce` and `step`."""
        return clip_grad_norm_(self.shares, max_norm)

    def step(self) -> None:
        """Step this rank's shares, gather everyone's, and clear the gradients."""
        self.optimizer.step()
        gather_all(self.shares, self.parameters, self.collectives)
        self.optimizer.zero_grad()
        for parameter in self.parameters:
            parameter.grad = None
