"""ZeRO, stage 3: weights are sharded too; those of a unit are whole while it computes, forward and backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm_scale.collectives import LIBRARY, Collectives
from llm_scale.parallel.ddp import same_start
from llm_scale.parallel.shards import clip_grad_norm_, gather, master, reduce, refuse_unless_elementwise


class Event(NamedTuple):
    """What happened to a unit on this rank, and when.

    Attributes:
        seconds: of `time.perf_counter`.
        unit: its name; "root" is all that is in no other.
        action: "gather", "free" or "reduce".
        bytes: of whole weights that this rank holds afterwards, over all units.
    """

    seconds: float
    unit: str
    action: str
    bytes: int


class Unit:
    """Parameters of a module that are gathered and freed together.

    Args:
        name: for events.
        parameters, shares: whole, and this rank's.
        collectives: the library's, or the ring by hand.
        note: called with the unit and what has happened to it.
    """

    def __init__(
        self, name: str, parameters: list[nn.Parameter], shares: list[nn.Parameter], collectives: Collectives,
        note: Callable[[Unit, str], Any],
    ) -> None:  # fmt: skip
        self.name, self.parameters, self.shares = name, parameters, shares
        self.collectives, self.note = collectives, note
        self.bytes = [parameter.nbytes for parameter in parameters]
        self.trained = [pair for pair in zip(parameters, shares, strict=True) if pair[0].requires_grad]
        self.whole, self.in_backward, self.arrived = True, False, 0

    def gather(self) -> None:
        """Make the weights whole; the tensors, and views that autograd saved of them, stay the same."""
        if not self.whole:
            for parameter, number in zip(self.parameters, self.bytes, strict=True):
                parameter.untyped_storage().resize_(number)
            gather(self.shares, self.parameters, self.collectives)
            self.whole = True
            self.note(self, "gather")

    def free(self) -> None:
        """Let the weights' memory go, and keep the tensors."""
        for parameter in self.parameters:
            parameter.untyped_storage().resize_(0)
        self.whole = False
        self.note(self, "free")

    def reduce(self) -> None:
        """Give every rank its share of the gradients' means, and let go of whole gradients and weights."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p, _ in self.trained]
        for (parameter, part), mine in zip(self.trained, reduce(gradients, self.collectives), strict=True):
            part.grad = mine if part.grad is None else part.grad + mine
            parameter.grad = None
        self.arrived, self.in_backward = 0, False
        self.note(self, "reduce")
        self.free()


def attach(unit: Unit, module: nn.Module, root: bool) -> None:
    """Let the module's passes call the unit. The root stays whole from its forward pass to its last gradient."""

    def before_backward(*_: Any) -> None:
        unit.in_backward = True
        unit.gather()  # once more: the gradients need the weights

    def after_forward(*_: Any) -> None:
        # Checkpointing runs the module once more inside the backward pass, which still needs its weights.
        if not torch.is_grad_enabled() or not (root or unit.in_backward):
            unit.free()

    def gradient_arrived(_: nn.Parameter) -> None:
        unit.arrived += 1
        if unit.arrived == len(unit.trained):
            unit.reduce()

    module.register_forward_pre_hook(lambda *_: unit.gather())
    module.register_forward_hook(after_forward)
    if not root:
        module.register_full_backward_pre_hook(before_backward)
    for parameter, _part in unit.trained:
        parameter.register_post_accumulate_grad_hook(gradient_arrived)
    unit.free()


class Zero3:
    """Each rank keeps its share of everything; a unit is gathered before it computes, and freed after it.

    Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054), section 5.3; Zhao et al. 2023, FSDP (arXiv:2304.11277). A step
    sends half as much again as data parallel: weights twice (forward, backward), gradients once.

    Args:
        model: the same on every rank from here on.
        units: modules of it whose weights come and go together, as a rule its blocks; what is in none of them (often an
            embedding that the head shares) is the root, and stays whole from the first forward pass to the last
            reduction.
        optimizer: its class; `options` are its arguments.
        collectives: the library's, or the ring by hand.

    Attributes:
        events: gathers, frees and reductions of this rank, in their order.

    Raises:
        ValueError: for an optimiser that is not element-wise, or a parameter that two units share.
    """

    def __init__(
        self, model: nn.Module, units: Iterable[nn.Module], optimizer: type[torch.optim.Optimizer],
        collectives: Collectives = LIBRARY, **options: Any,
    ) -> None:  # fmt: skip
        refuse_unless_elementwise(optimizer)
        same_start(model)
        self.shares = [nn.Parameter(part.detach().clone()) for part in master(model)]  # the weights' memory is let go
        self.optimizer, self.collectives = optimizer(self.shares, **options), collectives
        self.units, self.events = list[Unit](), list[Event]()
        left = dict(zip(model.parameters(), self.shares, strict=True))
        names = {module: name or "root" for name, module in model.named_modules()}
        for module in [*units, model]:
            inside = [p for p in module.parameters() if p in left or module is not model]
            if any(p not in left for p in inside):
                raise ValueError(f"{names[module]} shares a parameter with another unit; leave one of them to the root")
            unit = Unit(names[module], inside, [left.pop(p) for p in inside], collectives, self._note)
            self.units.append(unit)
            attach(unit, module, root=module is model)

    def _note(self, unit: Unit, action: str) -> None:
        held = sum(sum(each.bytes) for each in self.units if each.whole)
        self.events.append(Event(time.perf_counter(), unit.name, action, held))

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip by the norm of the whole gradient; between backward pass and `step`."""
        return clip_grad_norm_(self.shares, max_norm)

    def step(self) -> None:
        """Step this rank's shares, and clear the gradients; weights are gathered when they are next needed."""
        for unit in self.units:
            if unit.arrived:  # some of its parameters were not used, so that it still waits for their gradients
                unit.reduce()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole weights by name, on every rank: for a checkpoint."""
        shares = dict(zip((name for name, _ in model.named_parameters()), self.shares, strict=True))
        state: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            whole = torch.empty(parameter.shape, device=parameter.device)
            gather([shares[name]], [whole], self.collectives)
            state[name] = whole
        return state


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """The transformer blocks of a model: the members of its first `ModuleList`.

    Raises:
        ValueError: when it has none.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            return list(module)
    raise ValueError("the model has no ModuleList of blocks; name its units yourself")
