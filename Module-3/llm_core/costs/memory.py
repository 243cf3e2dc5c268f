"""What a training step really holds, counted: weights, gradients and states, saved activations, the peak."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

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


class Curve(NamedTuple):
    """What was held while some work ran.

    Attributes:
        seconds: of each change, from the first on; the profiler's own cost is in them.
        held: bytes of tensors on the CPU after it, beyond those that were there before.
        parts: seconds at which each part named by `torch.profiler.record_function` begins and ends.
    """

    seconds: list[float]
    held: list[int]
    parts: dict[str, tuple[float, float]]


def memory_curve(work: Callable[[], Any], parts: Sequence[str] = ()) -> Curve:
    """Every change of the memory that tensors on the CPU take while `work()` runs.

    Args:
        work: what to run.
        parts: names that `work` gives its parts.
    """
    # The profiler's C++ part announces its start on stderr unless this is set before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
    start = changes[0].start_ns() if changes else 0
    named = {
        event.name(): ((event.start_ns() - start) / 1e9, (event.start_ns() + event.duration_ns() - start) / 1e9)
        for event in events
        if event.name() in parts
    }
    held = list(accumulate(event.nbytes() for event in changes))
    return Curve([(event.start_ns() - start) / 1e9 for event in changes], held, named)


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes of tensors on the CPU that `work()` holds at a time beyond those that were there before."""
    return max(memory_curve(work).held, default=0)
