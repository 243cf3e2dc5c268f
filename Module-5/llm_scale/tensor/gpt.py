"""A GPT cut over the ranks of a group: by hand, and by a plan for `torch.distributed.tensor.parallel`.

Queries, keys, values, gate and up are cut by their outputs, a part of the heads and of the MLP's width for each rank;
the two matrices that write into the residual stream by their inputs; embedding and head by vocabulary. Norms are whole.
Embedding and head are cut too because a tied matrix is one: cut for the head, whose logits are the largest activation
of a small model and then never exist as a whole, it is cut for the embedding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from llm_core.config import GPTConfig
from llm_core.losses import shift
from llm_core.model import GPT
from llm_data.rows.documents import IGNORE_INDEX
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from llm_scale.collectives import Collectives
from llm_scale.tensor.linear import (
    ColumnParallelLinear,
    Group,
    RowParallelLinear,
    VocabParallelEmbedding,
    collectives_of,
    enter,
    refuse_uneven,
    vocab_parallel_cross_entropy,
)

# The dimension along which a matrix is cut, by the name of its layer; what is not here is whole on every rank.
CUT = {
    "q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 0, "up_proj": 0, "down_proj": 1,
    "embed_tokens": 0, "lm_head": 0,
}  # fmt: skip


def cut_dimension(name: str) -> int | None:
    """The dimension along which a parameter is cut, or None for a whole one; `name` as in the model's state dict."""
    return CUT.get(name.split(".")[-2])


def refuse_indivisible(config: GPTConfig, size: int) -> None:
    """Raise a ValueError for a model that has not N equal parts, with what to change.

    A rank needs whole heads of queries and whole heads of keys and values, so that attention needs no message.
    """
    for name in ("num_key_value_heads", "num_attention_heads", "intermediate_size", "vocab_size"):
        value = getattr(config, name)
        if value % size:
            fitting = [n for n in range(1, size) if value % n == 0]
            raise ValueError(
                f"{name}={value} cannot be divided among {size} ranks; make it a multiple of {size}, "
                f"or take {fitting[-1]} tensor-parallel rank{'s' * (fitting[-1] > 1)}"
            )


def tensor_parallel(
    model: GPT, group: Group = None, sequence: bool = False, collectives: Collectives | None = None
) -> GPT:
    """Cut a model in place over the ranks of a group, and give it back; parameters keep their names.

    Every rank then feeds it the same rows. The loss is that of the whole model on every rank; `logits` are this rank's
    columns (`linear.gather_columns` makes them whole). Gradients are those of the rank's parts, whole for the norms: an
    optimiser that steps each number by itself needs nothing more. Dropout draws for a rank's heads: seed ranks apart.

    Args:
        model: rank 0's weights count; those of the group's other ranks are overwritten.
        group: the ranks; None for all.
        sequence: outside the cut matrices each rank holds its T / N positions, norms and residual stream included.
        collectives: over the group; the library's by default, the ring by hand to count bytes.

    Raises:
        ValueError: for sizes that are not multiples of N.
    """
    refuse_indivisible(model.config, dist.get_world_size(group))
    way = collectives_of(group, collectives)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor, group=group, group_src=0)

    def cut(name: str, linear: nn.Module) -> nn.Module:
        assert isinstance(linear, nn.Linear)
        if CUT[name] == 1:
            return RowParallelLinear(linear, group, sequence, collectives)
        return ColumnParallelLinear(linear, group, sequence, entered=True, collectives=collectives)

    def enter_once(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (enter(args[0], way, sequence), *args[1:])

    for block in model.model.layers:
        for region in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            for name, linear in list(region.named_children()):
                setattr(region, name, cut(name, linear))
            region.register_forward_pre_hook(enter_once)  # what several matrices read enters once
    embedding = VocabParallelEmbedding(model.model.embed_tokens, group, sequence, collectives)
    head = ColumnParallelLinear(model.lm_head, group, sequence, collectives=collectives)
    if model.config.tie_word_embeddings:
        head.weight = embedding.weight
    setattr(model.model, "embed_tokens", embedding)  # noqa: B010  (another type than the class declares)
    setattr(model, "lm_head", head)  # noqa: B010
    setattr(model, "loss", partial(vocab_parallel_loss, group=group, collectives=collectives))  # noqa: B010
    if sequence:  # a rank's norms have seen its positions only
        for name, parameter in model.named_parameters():
            if cut_dimension(name) is None:
                parameter.register_hook(way.all_reduce)
    return model


def vocab_parallel_loss(
    logits: Tensor, labels: Tensor, group: Group = None, collectives: Collectives | None = None
) -> Tensor:
    """`GPT.loss` from each rank's columns of the logits, (B, T, V / N): the mean over the targets, in nats."""
    targets = shift(labels).flatten()
    losses = vocab_parallel_cross_entropy(logits.flatten(0, 1), targets, group, collectives)
    return losses.sum() / (targets != IGNORE_INDEX).sum().clamp(min=1)


def clip_grad_norm_(model: GPT, max_norm: float, group: Group = None) -> Tensor:
    """Clip by the norm of the whole model's gradient: parts are summed over ranks, whole ones count once."""
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    square = torch.stack([g.square().sum() for name, g in gradients if cut_dimension(name) is not None]).sum()
    dist.all_reduce(square, group=group)
    norm = (square + sum(g.square().sum() for name, g in gradients if cut_dimension(name) is None)).sqrt()
    for _, gradient in gradients:
        gradient *= (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return norm


def whole_state(model: GPT, group: Group = None, gradients: bool = False) -> dict[str, Tensor]:
    """The whole weights by name, on every rank: for a checkpoint. Or the whole gradients, for a comparison."""
    size, state = dist.get_world_size(group), dict[str, Tensor]()
    for name, parameter in model.named_parameters():
        tensor = parameter.grad if gradients else parameter.detach()
        dim = cut_dimension(name)
        if tensor is not None and dim is not None:
            parts = [torch.empty_like(tensor) for _ in range(size)]
            dist.all_gather(parts, tensor.contiguous(), group=group)
            tensor = torch.cat(parts, dim)
        if tensor is not None:
            state[name] = tensor.clone()
    return state


class Whole(ParallelStyle):
    """For `parallelize_module`: the layer's parameters become DTensors that are whole on every rank.

    Otherwise norms would stay plain tensors beside the others' DTensors, and what takes all parameters at once (the
    norm of the gradient, optimisers with foreach) refuses a mixture.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def wrap(_: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
            return (DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False), *inputs[1:])

        def unwrap(_: nn.Module, output: Any, mesh: DeviceMesh) -> Any:
            return output.to_local()

        return distribute_module(module, device_mesh, input_fn=wrap, output_fn=unwrap)


def library_plan(sequence: bool = False) -> dict[str, ParallelStyle]:
    """The same cut for `parallelize_module`: layer names to styles."""
    outside = Shard(1) if sequence else Replicate()  # of (B, T, C): the positions, or nothing, is cut
    plan: dict[str, ParallelStyle] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=outside),
        # The logits stay cut, and the library's loss reads them so.
        "lm_head": ColwiseParallel(input_layouts=outside, output_layouts=Shard(-1), use_local_output=False),
    }
    for region, columns, row, others in (
        ("self_attn", ("q_proj", "k_proj", "v_proj"), "o_proj", 3), ("mlp", ("gate_proj", "up_proj"), "down_proj", 0),
    ):  # fmt: skip
        name = f"model.layers.*.{region}"
        plan |= {f"{name}.{column}": ColwiseParallel() for column in columns}
        plan[f"{name}.{row}"] = RowwiseParallel(output_layouts=outside)
        nothing = (None,) * others  # rotation, mask, cache
        plan[name] = PrepareModuleInput(
            input_layouts=(outside, *nothing), desired_input_layouts=(Replicate(), *nothing)
        )
    for norm in ("norm", "layers.*.input_layernorm", "layers.*.post_attention_layernorm"):
        plan[f"model.{norm}"] = SequenceParallel(use_local_output=True) if sequence else Whole()
    return plan


def library_parallel(model: GPT, mesh: DeviceMesh, sequence: bool = False) -> GPT:
    """Cut a model in place by `library_plan`; its parameters become DTensors. Forward and backward pass stand inside
    `with torch.distributed.tensor.parallel.loss_parallel():`, which makes cross-entropy read cut logits.

    Raises:
        ValueError: for sizes that are not multiples of the mesh's size: the library would cut heads in two. With
            `sequence` a forward pass raises it for positions that are no multiple.
    """
    refuse_indivisible(model.config, mesh.size())
    parallelize_module(model, mesh, library_plan(sequence))
    if model.config.tie_word_embeddings:  # each layer got a DTensor of its own
        model.lm_head.weight = model.model.embed_tokens.weight
    if sequence:  # parts of two lengths end in a crash of one rank
        model.model.register_forward_pre_hook(lambda _, args: refuse_uneven(args[0].shape[1], mesh.size()))
    return model


def all_reduce_bytes(numbers: int, size: int, width: int = 4) -> int:
    """What a rank sends for an all-reduce round a ring: 2 (N - 1) / N of the tensor, filled up to N parts."""
    return 2 * (size - 1) * -(-numbers // size) * width


def sent_bytes(
    config: GPTConfig, batch: int, time: int, size: int, sequence: bool = False, width: int = 4
) -> dict[str, int]:
    """Bytes that a rank sends in a step's forward and backward pass, by part; of "layer" there are L.

    A layer's four all-reduces of B T C numbers are two at the ends of attention and MLP, forward, and two at their
    beginnings, backward. In sequence parallelism each is a reduce-scatter, and an all-gather in the other direction:
    the same bytes, and the norms' gradients (2 C a layer) besides.
    """
    stream = all_reduce_bytes(batch * time * config.hidden_size, size, width)
    norm = all_reduce_bytes(config.hidden_size, size, 4) if sequence else 0
    tokens = batch * time
    loss = 2 * all_reduce_bytes(tokens, size) + (size - 1) * tokens * 4  # sum and target; the largest, gathered
    return {"layer": 4 * stream + 2 * norm, "embedding": stream, "head": stream, "loss": loss, "last norm": norm}
