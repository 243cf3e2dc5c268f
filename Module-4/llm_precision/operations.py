"""What a step does, operation by operation: FLOPs, bytes read and written, and the seconds that a roofline gives it.

A step is run once with a list being kept. Each operation of the list then takes at least the time of its products or of
its bytes, whichever is longer, and never less than a launch. Their sum is the prediction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from llm_precision.meters import synchronize
from llm_precision.roofline import Ceilings

PRODUCTS, ATTENTION, REST = "products", "attention", "the rest"


class Operation(NamedTuple):
    """One operation of a step.

    Attributes:
        name: as torch has it, such as "mm".
        kind: "products", "attention" (fused), or "the rest": what is computed number by number, and copies.
        flops: of its products, two for a multiplication and its addition.
        moved: bytes read and written, each tensor once.
        weights: those of them that belong to `weights` of `operations_of`.
        dtype: of its first factor, by name.
        seconds: that it took when the list was made; the list's own cost is in them.
    """

    name: str
    kind: str
    flops: int
    moved: int
    weights: int
    dtype: str
    seconds: float


def _bytes(tensor: Tensor) -> int:
    """Of the numbers that lie in memory: an expanded tensor's are there once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _work(name: str, tensors: Sequence[Tensor], causal: bool) -> tuple[str, int]:
    """Kind and FLOPs from an operation's name and its tensors."""
    if name in ("mm", "bmm", "addmm", "baddbmm", "_scaled_mm"):
        a, b = tensors[-2:]
        return PRODUCTS, 2 * a.numel() * b.shape[-1]
    if name.startswith("_scaled_dot_product"):
        backward = "backward" in name
        q, k = tensors[1:3] if backward else tensors[:2]
        products = 5 if backward else 2  # the backward pass computes the scores again
        share = (1 + 1 / q.shape[2]) / 2 if causal else 1.0  # of the table that a causal kernel computes
        return ATTENTION, round(2 * products * q.numel() * k.shape[2] * share)
    return REST, 0


class _List(TorchDispatchMode):
    def __init__(self, device: str, weights: frozenset[int]) -> None:
        super().__init__()
        self.found: list[Operation] = []
        self.device, self.weights = device, weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        synchronize(self.device)
        start = time.perf_counter()
        out = func(*args, **kwargs)
        synchronize(self.device)
        seconds = time.perf_counter() - start
        read = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
        own = {each.untyped_storage().data_ptr() for each in read}
        changed = [
            each for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for each in tree_iter(value) if isinstance(each, Tensor)
        ]  # fmt: skip
        made = [
            each for each in tree_iter(out)
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in own
        ]  # fmt: skip
        name = func.overloadpacket.__name__
        if (made or changed) and not name.startswith("empty"):  # else a view, or memory that nothing is written to
            kind, flops = _work(name, read, _causal(func, args, kwargs))
            moved = sum(map(_bytes, (*read, *made, *changed)))
            if name in ("copy_", "fill_", "zero_"):  # these write their target and do not read it
                moved -= sum(map(_bytes, changed))
            of_weights = sum(_bytes(each) for each in read if each.untyped_storage().data_ptr() in self.weights)
            dtype = str(read[0].dtype if read else made[0].dtype).removeprefix("torch.")
            self.found.append(Operation(name, kind, flops, moved, of_weights, dtype, seconds))
        return out


def _causal(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return bool(given.get("is_causal", False))


def operations_of(work: Callable[[], Any], device: str = "cpu", weights: Iterable[Tensor] = ()) -> list[Operation]:
    """The operations of one `work()`, in order, each timed alone.

    Args:
        work: what to run, not compiled: inside compiled code there is nothing to see.
        device: "cpu" or "cuda".
        weights: tensors whose bytes are also counted apart.
    """
    mode = _List(device, frozenset(each.untyped_storage().data_ptr() for each in weights))
    with mode:
        work()
    return mode.found


def least_seconds(operation: Operation, ceilings: Ceilings) -> float:
    """The roofline's time of an operation alone."""
    rate = operation.dtype if operation.flops else next(iter(ceilings.rates))
    return ceilings.seconds(operation.flops, operation.moved, rate, 1)


def predicted_seconds(operations: Iterable[Operation], ceilings: Ceilings) -> dict[str, float]:
    """Seconds by kind, each operation at the roofline.

    Raises:
        KeyError: for products of a dtype whose rate was not measured.
    """
    seconds = dict.fromkeys((PRODUCTS, ATTENTION, REST), 0.0)
    for each in operations:
        seconds[each.kind] += least_seconds(each, ceilings)
    return seconds


def fused(operations: Iterable[Operation]) -> list[Operation]:
    """The list that a compiler would leave if it fused perfectly.

    Products and attention stay. Everything between two of them becomes one operation that reads what the one wrote and
    writes what the other reads, so as many bytes are moved as products and attention move without the weights. What
    comes after the last product (clipping, the optimiser) stays as it is.
    """
    listed = list(operations)
    last = max((place for place, each in enumerate(listed) if each.kind != REST), default=-1)
    kept = [each for each in listed[: last + 1] if each.kind != REST]
    between = [Operation("fused", REST, 0, each.moved - each.weights, 0, each.dtype, 0.0) for each in kept]
    return [*kept, *between, *listed[last + 1 :]]
