"""What a training step really holds, counted: weights, gradients and states, saved activations, the peak."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)


def _storages(tensors: Any) -> dict[int, int]:
    """Bytes by address: two views of one memory are one entry."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def held_bytes(model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """Bytes of the live weights, gradients and optimiser states; a matrix that two layers share counts once."""
    weights = list(model.parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    states = list(_tensors(dict(optimizer.state)))
    groups = {"weights": weights, "gradients": gradients, "states": states}
    return {name: sum(_storages(tensors).values()) for name, tensors in groups.items()}


def saved_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that `forward()` keeps for its backward pass, the model's own parameters left out.

    Its result must be returned: the tensors are counted while they live.
    """
    own = _storages(model.parameters())
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    total = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)
    del result
    return total


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes of tensors on the CPU that `work()` holds at a time beyond those that were there before."""
    # The profiler's C++ part announces its start on stderr unless this is set before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
