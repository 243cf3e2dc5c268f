"""ZeRO, stage 2: gradients are sharded too; the whole of one lives from its last addition to its reduction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llm_scale.collectives import LIBRARY, Collectives
from llm_scale.parallel.ddp import same_start
from llm_scale.parallel.shards import clip_grad_norm_, gather_all, master, reduce, refuse_unless_elementwise


class Zero2:
    """Each gradient is reduced the moment it is there, to the share of the rank that will step it, and freed.

    Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054), section 5.2. A step sends what data parallel sends; every further
    accumulated batch sends its gradients again.

    Args:
        model: the same on every rank from here on. Every rank must use the same parameters of it.
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
        self.optimizer = optimizer(self.shares, **options)
        self.share_of = dict(zip(self.parameters, self.shares, strict=True))
        for parameter in filter(lambda p: p.requires_grad, self.parameters):
            parameter.register_post_accumulate_grad_hook(self._reduce)

    def _reduce(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        (mine,) = reduce([parameter.grad], self.collectives)
        part = self.share_of[parameter]
        part.grad = mine if part.grad is None else part.grad + mine  # an earlier accumulated batch's
        parameter.grad = None

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip by the norm of the whole gradient; between backward pass and `step`."""
        return clip_grad_norm_(self.shares, max_norm)

    def step(self) -> None:
        """Step this rank's shares, gather everyone's, and clear the gradients."""
        self.optimizer.step()
        gather_all(self.shares, self.parameters, self.collectives)
        self.optimizer.zero_grad()
