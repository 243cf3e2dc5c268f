"""A GPT cut into stages that work on micro-batches: by hand over send and receive, and by torch's own pipelining."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from llm_core.losses import causal_loss, shift
from llm_core.model import GPT, rotary
from llm_data.rows.documents import IGNORE_INDEX
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from llm_scale.pipeline.schedules import Piece, Work, orders
from llm_scale.tensor.linear import Group

LossFunction = Callable[[Tensor, Tensor], Tensor]


class Stage(nn.Module):
    """The s-th of p parts of a GPT: its blocks, on the first stage the embedding too, on the last norm and head.

    It takes token ids (B, T) on the first stage and hidden states (B, T, C) on others; it gives hidden states, and
    logits (B, T, V) on the last. The parameters are the model's own, not copies.

    Raises:
        ValueError: for more stages than blocks.
    """

    def __init__(self, model: GPT, stage: int, stages: int) -> None:
        super().__init__()
        blocks = list(model.model.layers)
        if not 0 <= stage < stages <= len(blocks):
            raise ValueError(
                f"stage {stage} of {stages} of a model with {len(blocks)} blocks: take at most {len(blocks)} stages"
            )
        self.config, self.stage, self.stages = model.config, stage, stages
        numbers = range(len(blocks) * stage // stages, len(blocks) * (stage + 1) // stages)
        first, last = stage == 0, stage == stages - 1
        self.embed_tokens = model.model.embed_tokens if first else None
        self.layers = nn.ModuleDict({str(i): blocks[i] for i in numbers})
        self.norm = model.model.norm if last else None
        self.lm_head = model.lm_head if last else None

    def forward(self, x: Tensor) -> Tensor:
        self.config.refuse_longer(x.shape[1])
        positions = torch.arange(x.shape[1], device=x.device)[None]
        rotation = rotary(positions, self.config.head_dim, self.config.rope_theta)
        if self.embed_tokens is not None:
            x = self.embed_tokens(x)
        for layer in self.layers.values():
            x = layer(x, rotation, None, None)
        if self.norm is not None and self.lm_head is not None:
            x = self.lm_head(self.norm(x))
        return x

    def gradients(self) -> dict[str, Tensor]:
        """Gradients under the names of the whole model."""
        return {
            name if name.startswith("lm_head") else f"model.{name}": parameter.grad
            for name, parameter in self.named_parameters() if parameter.grad is not None
        }  # fmt: skip


def share_tied_gradient(stage: Stage, group: Group = None) -> None:
    """Where embedding and head are one matrix, the first and the last stage hold a copy each: both get the sum of the
    two gradients, and a step then leaves the copies equal. Call it after the backward passes; else it does nothing."""
    if not stage.config.tie_word_embeddings or stage.stages == 1:
        return
    layer, other = (stage.embed_tokens, stage.stages - 1) if stage.stage == 0 else (stage.lm_head, 0)
    if layer is None:
        return
    mine = layer.weight.grad
    assert mine is not None
    theirs = torch.empty_like(mine)
    sending = dist.isend(mine.clone(), group=group, group_dst=other)
    dist.recv(theirs, group=group, group_src=other)
    assert sending is not None
    sending.wait()
    mine += theirs


class Result(NamedTuple):
    """What a step of a pipeline gave on this rank.

    Attributes:
        loss: the sum of the micro-batches' losses, on every rank.
        pieces: this stage's work, in seconds of a clock that all processes of a machine share.
        most_held: micro-batches whose activations it held at most.
    """

    loss: float
    pieces: list[Piece]
    most_held: int


class Neighbours:
    """Messages between the stages: receives wait, sends do not wait for their receiver.

    A stage that sends forward and one that sends backward to it at the same time would else wait for each other.

    Args:
        hidden: the shape of what one stage hands to the next.
        dtype: of it.
        group: the stages; None for all ranks.
    """

    def __init__(self, hidden: Sequence[int], dtype: torch.dtype, group: Group = None) -> None:
        self.hidden, self.dtype, self.group = hidden, dtype, group
        self.sending = list[Any]()

    def receive(self, stage: int) -> Tensor:
        """What a stage sends next."""
        tensor = torch.empty(*self.hidden, dtype=self.dtype)
        dist.recv(tensor, group=self.group, group_src=stage)
        return tensor

    def send(self, tensor: Tensor, stage: int) -> None:
        """Begin to send to a stage."""
        tensor = tensor.detach().contiguous()
        # The tensor is kept beside its message: it must not be freed before.
        self.sending.append((dist.isend(tensor, group=self.group, group_dst=stage), tensor))

    def finish(self) -> None:
        """Wait until all is sent."""
        for message, _ in self.sending:
            message.wait()


def run_stage(
    stage: nn.Module, order: Sequence[Work], inputs: Sequence[Tensor], hidden: Sequence[int],
    loss: Callable[[Tensor, int], Tensor], group: Group = None,
) -> Result:  # fmt: skip
    """Do a stage's work in order; gradients add up in its parameters. The rank in the group is the stage.

    Args:
        stage: a micro-batch's tensor to the next.
        order: of this stage, from `schedules`.
        inputs: the micro-batches, which the first stage reads.
        hidden: the shape of what one stage hands to the next.
        loss: of the last stage's output and the micro-batch's number: a scalar.
        group: the stages; None for all ranks.

    Raises:
        ValueError: for tensors on a GPU, or an interleaved order.
    """
    refuse_order(order, inputs)
    rank, last = dist.get_rank(group), dist.get_world_size(group) - 1
    neighbours = Neighbours(hidden, next(stage.parameters()).dtype, group)
    held: dict[int, tuple[Tensor, Tensor]] = {}  # by micro-batch: what the stage read, and its output or loss
    pieces, total, most = list[Piece](), 0.0, 0
    for kind, i, _ in order:
        if kind == "forward":
            x = inputs[i] if rank == 0 else neighbours.receive(rank - 1).requires_grad_()
            start = time.perf_counter()
            y = stage(x) if rank < last else loss(stage(x), i)
            end = time.perf_counter()
            held[i] = x, y
            most = max(most, len(held))
            if rank < last:
                neighbours.send(y, rank + 1)
            else:
                total += y.item()
        else:
            gradient = None if rank == last else neighbours.receive(rank + 1)
            x, y = held.pop(i)
            start = time.perf_counter()
            y.backward(gradient)
            end = time.perf_counter()
            if rank > 0:
                assert x.grad is not None
                neighbours.send(x.grad, rank - 1)
        pieces.append(Piece(rank, kind, i, start, end))
    neighbours.finish()
    answer = torch.tensor([total], dtype=torch.float64)
    dist.broadcast(answer, group=group, group_src=last)
    return Result(answer.item(), pieces, most)


def refuse_order(order: Sequence[Work], inputs: Sequence[Tensor]) -> None:
    """Raise a ValueError for work that `run_stage` cannot do, with what to take."""
    if inputs[0].device.type != "cpu":
        raise ValueError("NCCL's sends wait for their receivers: run this on CPU tensors, or take `library_step`")
    if any(work.chunk for work in order):
        raise ValueError("a stage has one part of the model here; take schedule='gpipe' or '1f1b'")


def loss_of(labels: Tensor) -> LossFunction:
    """Logits and labels of a micro-batch to its share of the batch's mean loss: the shares add up to `GPT.loss`.

    The divisor is the number of targets of the whole batch. A mean for each micro-batch would weigh a target by how
    few there are beside it.
    """
    targets = (shift(labels) != IGNORE_INDEX).sum().clamp(min=1)
    return lambda logits, part: causal_loss(logits, part)[0] / targets


def step(
    stage: Stage, ids: Tensor, labels: Tensor, micro_batches: int, schedule: str = "1f1b", group: Group = None
) -> Result:
    """Loss and gradients of a batch by hand; every rank gets the whole batch, and reads what its stage needs.

    Args:
        stage: this rank's.
        ids: (B, T).
        labels: as for `GPT`.
        micro_batches: m; B is a multiple of it.
        schedule: "gpipe" or "1f1b".
        group: the stages; None for all ranks.

    Raises:
        ValueError: for a batch that cannot be divided, an unknown schedule, or another number of ranks than stages.
    """
    refuse(stage, ids, micro_batches, group)
    order = orders(schedule, stage.stages, micro_batches)[stage.stage]
    inputs, targets, loss = ids.chunk(micro_batches), labels.chunk(micro_batches), loss_of(labels)
    hidden = (*inputs[0].shape, stage.config.hidden_size)
    result = run_stage(stage, order, inputs, hidden, lambda logits, i: loss(logits, targets[i]), group)
    share_tied_gradient(stage, group)
    return result


def library_step(
    stage: Stage, ids: Tensor, labels: Tensor, micro_batches: int, schedule: str = "1f1b", group: Group = None
) -> float:
    """The same by `torch.distributed.pipelining`, on the same stage; the loss, on every rank."""
    refuse(stage, ids, micro_batches, group)
    kinds = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
    if schedule not in kinds:
        raise ValueError(f"schedule={schedule!r} is none of {', '.join(kinds)}")
    pipe = PipelineStage(stage, stage.stage, stage.stages, ids.device, group=group)
    # The loss is divided by the batch's targets already, so that gradients add up: no division by m.
    runner = kinds[schedule](pipe, micro_batches, loss_fn=loss_of(labels), scale_grads=False)
    losses: list[Tensor] = []
    inputs = (ids,) if stage.stage == 0 else ()
    last = stage.stage == stage.stages - 1
    runner.step(*inputs, target=labels if last else None, losses=losses if last else None)
    share_tied_gradient(stage, group)
    total = torch.stack(losses).sum().detach() if last else torch.zeros((), device=ids.device)
    dist.broadcast(total, group=group, group_src=stage.stages - 1)
    return total.item()


def refuse(stage: Stage, ids: Tensor, micro_batches: int, group: Group) -> None:
    """Raise a ValueError for what cannot be run, with what to change."""
    if len(ids) % micro_batches:
        raise ValueError(f"{len(ids)} rows are not {micro_batches} equal micro-batches; take a multiple of them")
    if dist.get_world_size(group) != stage.stages:
        raise ValueError(
            f"{stage.stages} stages on {dist.get_world_size(group)} ranks; cut the model into as many stages as ranks"
        )


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        ctx.backward_seconds = backward
        time.sleep(forward)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.backward_seconds)
        return grad, None, None


class Sleeper(nn.Module):
    """A stage whose work is to sleep: ranks that share the cores of a laptop do not slow each other down in it, so that
    what is measured is the schedule. Seconds a forward and a backward work."""

    def __init__(self, forward: float = 0.02, backward: float = 0.04) -> None:
        super().__init__()
        self.seconds = forward, backward
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Sleep.apply(x * self.weight, *self.seconds)
        return out


def sleep_through(
    micro_batches: int, schedule: str, forward: float = 0.02, backward: float = 0.04, group: Group = None
) -> Result:
    """A pipeline of sleepers, a stage for each rank: its pieces show the bubble of a schedule as it is run."""
    order = orders(schedule, dist.get_world_size(group), micro_batches)[dist.get_rank(group)]
    inputs = [torch.ones(1)] * micro_batches
    dist.barrier(group)
    return run_stage(Sleeper(forward, backward), order, inputs, (1,), lambda y, _: y.sum(), group)
