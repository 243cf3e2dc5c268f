"""What the tests of tensor parallelism run on each rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from llm_core.config import GPTConfig
from llm_core.losses import shift, token_losses
from llm_core.model import GPT
from llm_scale import collectives
from llm_scale.tensor import gpt
from llm_scale.tensor.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    enter,
    gather_columns,
    leave,
    vocab_parallel_cross_entropy,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel

CONFIG = GPTConfig(
    64, 32, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=16
)
ADAMW: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
STEPS, NORM = 20, 0.5


def config(tied: bool) -> GPTConfig:
    return replace(CONFIG, tie_word_embeddings=tied)


def rows(step: int) -> Tensor:
    return torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(step))


def labels(ids: Tensor) -> Tensor:
    """Some are no targets, another number in each row."""
    return torch.where(torch.arange(16) < torch.arange(4)[:, None], -100, ids)


def alone(tied: bool = True) -> dict[str, Any]:
    """Losses, norms, first gradients and last weights of one process."""
    torch.manual_seed(0)
    model = GPT(config(tied))
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses, norms, gradients, logits = [], [], {}, None
    for step in range(STEPS):
        output = model(rows(step), labels=labels(rows(step)))
        assert output.loss is not None
        output.loss.backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            logits = output.logits.detach()
        losses.append(output.loss.item())
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), NORM).item())
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return {"losses": losses, "norms": norms, "gradients": gradients, "weights": weights, "logits": logits}


def train(tied: bool = True, sequence: bool = False, ring: bool = False, size: int = 0) -> dict[str, Any]:
    """The same, cut by hand over all ranks, or in groups of `size` that each train for themselves."""
    torch.manual_seed(dist.get_rank())  # other weights on each rank: the start must be made the same
    whole = GPT(config(tied))
    torch.manual_seed(0)
    same = GPT(config(tied))
    group = None
    if size:
        group = init_device_mesh("cpu", (dist.get_world_size() // size, size), mesh_dim_names=("data", "tensor"))[
            "tensor"
        ].get_group()
    if dist.get_rank(group) == 0:
        whole = same
    collectives.WIRE.clear()
    model = gpt.tensor_parallel(whole, group, sequence, collectives.RING if ring else None)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    result: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(STEPS):
        output = model(rows(step), labels=labels(rows(step)))
        assert output.loss is not None
        output.loss.backward()
        if step == 0:
            result["sent"] = collectives.WIRE.sent
            result["gradients"] = gpt.whole_state(model, group, gradients=True)
            result["logits"] = gather_columns(output.logits, group)
            result["held"] = {name: p.numel() for name, p in model.named_parameters()}
            result["own"] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        result["losses"].append(output.loss.item())
        result["norms"].append(gpt.clip_grad_norm_(model, NORM, group).item())
        optimizer.step()
        optimizer.zero_grad()
    result["weights"] = gpt.whole_state(model, group)
    result["own weights"] = {name: p.detach().clone() for name, p in model.named_parameters()}
    return result


def train_library(tied: bool = True, sequence: bool = False) -> dict[str, Any]:
    """The same by `parallelize_module`."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = gpt.library_parallel(GPT(config(tied)), mesh, sequence)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses, shares = [], {}
    gradients: dict[str, Tensor] = {}
    for step in range(STEPS):
        with loss_parallel():
            loss = model(rows(step), labels=labels(rows(step))).loss
            assert loss is not None
            loss.backward()
        losses.append((loss.full_tensor() if isinstance(loss, DTensor) else loss).item())
        if step == 0:
            gradients = {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
            shares = {name: local(p).numel() for name, p in model.named_parameters()}
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        nn.utils.clip_grads_with_norm_(model.parameters(), NORM, norm)
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: whole(p.detach()) for name, p in model.named_parameters()}
    return {"losses": losses, "gradients": gradients, "weights": weights, "held": shares}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def layers() -> dict[str, Tensor]:
    """A column-parallel layer, then a row-parallel one, both with biases, against the whole ones: the largest
    differences of output, input gradient and this rank's parts, plain and with the positions cut."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    first, second = nn.Linear(6, 8), nn.Linear(8, 6)
    x = torch.randn(2, 4, 6, requires_grad=True)
    target = torch.randn(2, 4, 6)
    expected = second(first(x).tanh())
    (expected * target).sum().backward()
    assert x.grad is not None
    result = {}
    for sequence in (False, True):
        column, row = ColumnParallelLinear(first, sequence=sequence), RowParallelLinear(second, sequence=sequence)
        cut = (lambda tensor: tensor.chunk(size, 1)[rank]) if sequence else (lambda tensor: tensor)
        mine = cut(x).detach().clone().requires_grad_()
        y = row(column(mine).tanh())
        (y * cut(target)).sum().backward()
        pairs = {
            "output": (y, cut(expected)), "input": (mine.grad, cut(x.grad)),
            "column weight": (column.weight.grad, first.weight.grad.chunk(size)[rank]),
            "column bias": (column.bias.grad, first.bias.grad.chunk(size)[rank]),
            "row weight": (row.weight.grad, second.weight.grad.chunk(size, 1)[rank]),
            "row bias": (row.bias.grad, second.bias.grad),
        }  # fmt: skip
        result |= {f"{name}, sequence={sequence}": (a - b).abs().max() for name, (a, b) in pairs.items()}
    return result


def regions() -> dict[str, Tensor]:
    """The conjugate pairs, forward and backward, each on a tensor that says which rank it came from."""
    rank, size = dist.get_rank(), dist.get_world_size()
    way = gpt.collectives_of(None, None)
    result = {}
    for name, function, sequence, time in (
        ("copy", enter, False, 4), ("sum", leave, False, 4), ("gather", enter, True, 4 // size),
        ("scatter", leave, True, 4),
    ):  # fmt: skip
        x = (torch.arange(2.0 * time).view(1, time, 2) + 100 * rank).requires_grad_()
        y = function(x, way, sequence)
        result[name] = y.detach()
        y.backward(torch.full_like(y, 10.0**rank))
        result[f"{name} backward"] = x.grad
    return result


def vocabulary(large: float) -> dict[str, Tensor]:
    """Embedding and cross-entropy of cut vocabularies: differences from the whole ones; logits up to `large`."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    embedding = nn.Embedding(12, 4)
    ids = torch.tensor([[0, 11, 5, 6], [3, 3, 9, 0]])
    weight = torch.randn(2, 4, 4)
    expected = embedding(ids)
    (expected * weight).sum().backward()
    cut = VocabParallelEmbedding(embedding)
    rows = cut(ids)
    (rows * weight).sum().backward()
    logits = (large * torch.randn(8, 12)).requires_grad_()
    targets = shift(torch.tensor([[0, 11, 5, 6], [3, -100, 9, 0]])).flatten()
    losses = token_losses(logits, targets)
    losses.sum().backward()
    mine = logits.detach().chunk(size, 1)[rank].requires_grad_()
    ours = vocab_parallel_cross_entropy(mine, targets)
    ours.sum().backward()
    assert embedding.weight.grad is not None and cut.weight.grad is not None
    assert logits.grad is not None and mine.grad is not None
    return {
        "rows": (rows - expected).abs().max(),
        "rows' gradient": (cut.weight.grad - embedding.weight.grad.chunk(size)[rank]).abs().max(),
        "losses": (ours - losses).abs().max(),
        "logits' gradient": (mine.grad - logits.grad.chunk(size, 1)[rank]).abs().max(),
    }


def refused(sizes: dict[str, int], sequence: bool = False, time: int = 16) -> set[str]:
    """What both ways of cutting say of a model, or of rows, that cannot be divided."""
    said, mesh = set(), init_device_mesh("cpu", (dist.get_world_size(),))
    for library in (False, True):
        model = GPT(replace(CONFIG, **sizes))
        try:
            model = (
                gpt.library_parallel(model, mesh, sequence) if library else gpt.tensor_parallel(model, None, sequence)
            )
            model(rows(0)[:, :time])
            said.add("not refused")
        except ValueError as error:
            said.add(str(error))
    return said


def refused_layers() -> list[str]:
    """What single layers say of sizes that cannot be divided, and of the ring with a group."""
    said = []
    for build in (
        lambda: ColumnParallelLinear(nn.Linear(4, 7)), lambda: RowParallelLinear(nn.Linear(7, 4)),
        lambda: VocabParallelEmbedding(nn.Embedding(7, 4)),
        lambda: RowParallelLinear(nn.Linear(4, 4), dist.group.WORLD, collectives=collectives.RING),
    ):  # fmt: skip
        try:
            build()
            said.append("not refused")
        except ValueError as error:
            said.append(str(error))
    return said
