"""Where a number that is no number begins: the first module whose output is not finite, and the first gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class NotFinite(RuntimeError):
    """A NaN or an infinity was made; the message says where and from what."""


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


def size_of(value: Any) -> str:
    sizes = [f"{tensor.abs().max().item():.3g}" for tensor in _tensors(value) if tensor.is_floating_point()]
    return f"inputs up to {', '.join(sizes)}" if sizes else "no inputs that are numbers"


def not_finite(value: Any) -> bool:
    return any(tensor.is_floating_point() and not torch.isfinite(tensor).all() for tensor in _tensors(value))


@contextmanager
def finite(model: nn.Module) -> Iterator[None]:
    """Inside, the first module that turns finite inputs into a NaN or an infinity raises, with its name.

    It looks at every output, so it costs time: turn it on for the steps before one that is known to break.

    Raises:
        NotFinite: naming the module, its weights if they are broken themselves, and the size of its inputs.
    """

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not not_finite(output) or not_finite(inputs):
                return
            own = [each for each, weight in module.named_parameters(recurse=False) if not_finite(weight)]
            cause = f"its own {', '.join(own)} is broken" if own else size_of(inputs)
            raise NotFinite(
                f"{name or 'the model'} ({type(module).__name__}) made a number that is not finite; {cause}"
            )

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def broken_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient is not finite, from the output back to the input."""
    named = list(model.named_parameters())
    return [name for name, weight in reversed(named) if weight.grad is not None and not_finite(weight.grad)]
