"""Loss scaling, for gradients that float16 would round to 0. Micikevicius et al. 2018, section 3.2.

A loss that is multiplied by a factor has gradients that are, too. They are divided by it before the step. Too large a
factor overflows: then the step is left out and the factor halved. A long time without overflow doubles it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class LossScaler:
    """As `torch.amp.GradScaler`, decision by decision.

    Attributes:
        factor: the loss is multiplied by it now.
        steps_taken, steps_left_out: of the optimiser.

    Args:
        factor: to begin with.
        growth, backoff: what it is multiplied by after `interval` good steps in a row, and after an overflow.
        interval: good steps in a row before it grows.
    """

    def __init__(
        self, factor: float = 65536.0, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000
    ) -> None:
        if not (growth > 1 and 0 < backoff < 1 and interval >= 1 and factor > 0):
            raise ValueError(
                f"factor={factor} above 0, growth={growth} above 1, backoff={backoff} between 0 and 1, "
                f"interval={interval} of 1 or more: one of them is not so"
            )
        self.factor, self.growth, self.backoff, self.interval = factor, growth, backoff, interval
        self.steps_taken = self.steps_left_out = 0
        self._good = 0
        self._finite: bool | None = None

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return loss * self.factor

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> bool:
        """Divide the gradients by the factor, in place, and say whether all of them are finite. Clip after this.

        Raises:
            RuntimeError: when it was called for this step already: the gradients would be divided twice.
        """
        if self._finite is not None:
            raise RuntimeError("unscale was called already for this step; call update() after each step")
        gradients = [each.grad for each in parameters if each.grad is not None]
        for gradient in gradients:
            gradient.div_(self.factor)
        self._finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        return self._finite

    def step(self, optimizer: Optimizer) -> bool:
        """Take the optimiser's step where all gradients are finite; returns whether it was taken."""
        if self._finite is None:
            self.unscale(weight for group in optimizer.param_groups for weight in group["params"])
        if self._finite:
            optimizer.step()
            self.steps_taken += 1
        else:
            self.steps_left_out += 1
        return bool(self._finite)

    def update(self) -> None:
        """Choose the factor of the next step."""
        if self._finite:
            self._good += 1
            if self._good == self.interval:
                self.factor, self._good = self.factor * self.growth, 0
        else:
            self.factor, self._good = self.factor * self.backoff, 0
        self._finite = None
