"""AdamW whose two averages take a byte a number each. Dettmers et al. 2021 (arXiv:2110.02861).

A step writes them out in float32, uses them, and rounds them again. The bytes are those of bitsandbytes' `AdamW8bit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from llm_peft.quantization.blocks import Blocks, dequantize_blocks, dynamic_table, quantize_blocks

SMALLEST = 4096  # tensors of fewer numbers keep averages of float32: norms and biases are few, and touchy


class AdamW8bit(Optimizer):
    """AdamW with averages of eight bits: 2 + 8/256 bytes a number instead of 8.

    The average of the gradients has a table with a sign, that of their squares one without. The weights change before
    the averages are rounded.

    Args:
        params: as for any optimiser of torch.
        lr, betas, eps, weight_decay: as for `torch.optim.AdamW`.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, for each parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            for name in ("exp_avg", "exp_avg_sq"):
                _keep(state, name, torch.zeros_like(parameter, dtype=torch.float32))
        state["step"] += 1
        gradient, weight = parameter.grad, parameter.float()
        assert gradient is not None
        average = _taken(state, "exp_avg", parameter).mul_(beta1).add_(gradient.float(), alpha=1 - beta1)
        square = _taken(state, "exp_avg_sq", parameter).mul_(beta2)
        square.addcmul_(gradient.float(), gradient.float(), value=1 - beta2)
        correction1, correction2 = 1 - beta1 ** state["step"], math.sqrt(1 - beta2 ** state["step"])
        weight = weight * (1 - group["lr"] * group["weight_decay"])
        if parameter.numel() < SMALLEST:  # the same numbers in the order in which the library takes them there
            update = average / (square.sqrt() + group["eps"] * correction2)
            parameter.copy_(weight.add_(update, alpha=-group["lr"] * correction2 / correction1))
        else:
            denominator = (square.sqrt() / correction2).add_(group["eps"])
            parameter.copy_(weight.addcdiv_(average, denominator, value=-group["lr"] / correction1))
        _keep(state, "exp_avg", average)
        _keep(state, "exp_avg_sq", square)


def _table(name: str, device: torch.device) -> Tensor:
    return dynamic_table(signed=name == "exp_avg").to(device)  # squares have no sign


def _keep(state: dict[str, Any], name: str, values: Tensor) -> None:
    """Put an average into the state: in eight bits, where it is not small."""
    if values.numel() < SMALLEST:
        state[name] = values
    else:
        blocks = quantize_blocks(values, _table(name, values.device))
        state[name], state[f"{name}_absmax"] = blocks.indices, blocks.absmax


def _taken(state: dict[str, Any], name: str, parameter: Tensor) -> Tensor:
    """The average as float32."""
    if parameter.numel() < SMALLEST:
        return state[name]
    blocks = Blocks(state[name], state[f"{name}_absmax"])
    return dequantize_blocks(blocks, _table(name, parameter.device)).view(parameter.shape)
