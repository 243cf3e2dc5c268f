"""What the tests of pipelines run on each rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_scale.pipeline import run
from llm_scale.pipeline.schedules import Work
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

CONFIG = GPTConfig(
    61, 24, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16
)
ADAMW: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and labels: of row i the first i positions are no targets, so that micro-batches differ in their number."""
    ids = torch.randint(61, (8, 16), generator=torch.Generator().manual_seed(step))
    return ids, torch.where(torch.arange(16) < torch.arange(8)[:, None], -100, ids)


def model(tied: bool) -> GPT:
    torch.manual_seed(0)
    return GPT(replace(CONFIG, tie_word_embeddings=tied))


def alone(tied: bool) -> dict[str, Any]:
    """The first loss and its gradients, and the losses of 5 steps, of one process."""
    whole = model(tied)
    optimizer = torch.optim.AdamW(whole.parameters(), **ADAMW)
    losses, gradients = [], {}
    for step in range(5):
        ids, labels = batch(step)
        loss = whole(ids, labels=labels).loss
        assert loss is not None
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in whole.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, "gradients": gradients}


def cut(tied: bool, micro_batches: int, schedule: str, library: bool = False, size: int = 0) -> dict[str, Any]:
    """The same, a stage for each rank, or in groups of `size` ranks that each have a pipeline of their own."""
    group = None
    if size:
        mesh = init_device_mesh("cpu", (dist.get_world_size() // size, size), mesh_dim_names=("data", "pipeline"))
        group = mesh["pipeline"].get_group()
    stage = run.Stage(model(tied), dist.get_rank(group), dist.get_world_size(group))
    optimizer = torch.optim.AdamW(stage.parameters(), **ADAMW)
    losses, gradients, held = [], {}, 0
    for step in range(5):
        ids, labels = batch(step)
        if library:
            losses.append(run.library_step(stage, ids, labels, micro_batches, schedule, group))
        else:
            result = run.step(stage, ids, labels, micro_batches, schedule, group)
            losses.append(result.loss)
            held = result.most_held
        if step == 0:
            gradients = {name: grad.clone() for name, grad in stage.gradients().items()}
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses, "gradients": gradients, "held": held}


def sleep(micro_batches: int, schedule: str) -> run.Result:
    return run.sleep_through(micro_batches, schedule)


def refused() -> list[str]:
    """What is said of a pipeline that cannot be run."""
    rank, size = dist.get_rank(), dist.get_world_size()
    whole, (ids, labels) = model(True), batch()
    stage = run.Stage(whole, rank, size)
    said, nothing = [], lambda y, _: y
    for call in (
        lambda: run.step(stage, ids, labels, 3), lambda: run.step(stage, ids, labels, 4, "zigzag"),
        lambda: run.library_step(stage, ids, labels, 4, "interleaved"),
        lambda: run.step(stage, ids, labels, 4, "interleaved"),
        lambda: run.step(run.Stage(whole, 0, size + 1), ids, labels, 4), lambda: run.Stage(whole, 0, 6),
        lambda: run.run_stage(nn.Identity(), [Work("forward", 0)], [torch.ones(1, device="meta")], (1,), nothing),
    ):  # fmt: skip
        try:
            call()
            said.append("not refused")
        except ValueError as error:
            said.append(str(error))
    return said
