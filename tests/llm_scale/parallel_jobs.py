"""What the tests of data parallel training run on each rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_scale import collectives
from llm_scale.parallel.ddp import DataParallel, NaiveDataParallel
from llm_scale.parallel.zero1 import Zero1
from llm_scale.parallel.zero2 import Zero2
from llm_scale.parallel.zero3 import Zero3, blocks_of
from torch import Tensor, nn

CONFIG = GPTConfig(
    61, 24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16
)
ADAMW: dict[str, Any] = {"lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
STEPS, ACCUMULATE, NORM = 20, 2, 0.5


def rows(step: int, part: int) -> Tensor:
    """The global batch, 8 rows, of an accumulated part of a step."""
    begins = torch.randint(61, (8, 1), generator=torch.Generator().manual_seed(100 * step + part))
    return (begins + 3 * torch.arange(16)) % 61  # each is the one before and 3: soon learned


def mine(ids: Tensor) -> Tensor:
    return ids.chunk(dist.get_world_size())[dist.get_rank()]


def alone() -> tuple[list[float], dict[str, Tensor]]:
    """Losses and last weights of one process that sees all rows."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses = []
    for step in range(STEPS):
        total = 0.0
        for part in range(ACCUMULATE):
            loss = model(rows(step, part), labels=rows(step, part)).loss / ACCUMULATE
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, {name: value.detach() for name, value in model.named_parameters()}


def alone_with_a_master_copy() -> list[float]:
    """The losses of one process whose weights have 16 bits, and are stepped in 32."""
    torch.manual_seed(0)
    model, losses = GPT(CONFIG), []
    copies = [nn.Parameter(p.detach().to(torch.bfloat16).float()) for p in model.parameters()]
    model = model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(copies, **ADAMW)
    for step in range(STEPS):
        total = 0.0
        for part in range(ACCUMULATE):
            loss = model(rows(step, part), labels=rows(step, part)).loss / ACCUMULATE
            loss.backward()
            total += loss.item()
        for copy, parameter in zip(copies, model.parameters(), strict=True):
            copy.grad, parameter.grad = parameter.grad.float(), None
        nn.utils.clip_grad_norm_(copies, NORM)
        optimizer.step()
        with torch.no_grad():
            for copy, parameter in zip(copies, model.parameters(), strict=True):
                parameter.copy_(copy)
        losses.append(total)
    return losses


def train(kind: str, ring: bool = False, checkpointing: bool = False, bf16: bool = False) -> dict[str, Any]:
    """The same run, each rank with its part of the rows."""
    torch.manual_seed(dist.get_rank())  # other weights on each rank: the start must be made the same
    if dist.get_rank() == 0:
        torch.manual_seed(0)
    model = GPT(CONFIG)
    if bf16:
        model = model.to(torch.bfloat16)
    if checkpointing:
        from functools import partial

        from torch.utils.checkpoint import checkpoint

        for block in model.model.layers:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    way = collectives.RING if ring else collectives.LIBRARY
    collectives.WIRE.clear()
    runner: Any
    if kind == "naive":
        runner = NaiveDataParallel(model, way)
    elif kind == "bucketed":
        runner = DataParallel(model, bucket_bytes=8_000)
    elif kind == "zero3":
        runner = Zero3(model, blocks_of(model), torch.optim.AdamW, way, **ADAMW)
    else:
        runner = {"zero1": Zero1, "zero2": Zero2}[kind](model, torch.optim.AdamW, way, **ADAMW)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW) if kind in ("naive", "bucketed") else None
    losses, norms = [], []
    for step in range(STEPS):
        total = torch.zeros(())
        for part in range(ACCUMULATE):
            ids = mine(rows(step, part))
            if kind == "bucketed" and part < ACCUMULATE - 1:
                with runner.no_sync():
                    loss = model(ids, labels=ids).loss / ACCUMULATE
                    loss.backward()
            else:
                loss = model(ids, labels=ids).loss / ACCUMULATE
                loss.backward()
            total += loss.detach()
        if kind == "naive":
            runner.average()
        elif kind == "bucketed":
            runner.finish()
        elif kind == "zero1":
            runner.reduce()
        if optimizer is not None:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), NORM).item())
            optimizer.step()
            optimizer.zero_grad()
        else:
            norms.append(runner.clip_grad_norm_(NORM).item())
            runner.step()
        dist.all_reduce(total)
        losses.append(total.item() / dist.get_world_size())
    sent = collectives.WIRE.sent
    whole = runner.full_state(model) if kind == "zero3" else dict(model.named_parameters())
    return {
        "losses": losses, "norms": norms, "sent": sent,
        "weights": {name: value.detach().clone() for name, value in whole.items()},
    }  # fmt: skip


def library(kind: str) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and last weights of torch's own `DistributedDataParallel` or `fully_shard` on the same rows."""
    torch.manual_seed(0)
    model: Any = GPT(CONFIG)
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses = []
    for step in range(STEPS):
        total = torch.zeros(())
        for part in range(ACCUMULATE):
            ids = mine(rows(step, part))
            loss = model(ids, labels=ids).loss / ACCUMULATE
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total)
        losses.append(total.item() / dist.get_world_size())
    weights = {
        name.removeprefix("module."): (value.full_tensor() if hasattr(value, "full_tensor") else value).detach()
        for name, value in model.named_parameters()
    }
    return losses, weights


def held(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Bytes between two steps, and just before the optimiser's, summed from live tensors."""
    torch.manual_seed(0)
    model = GPT(CONFIG).to(dtype)
    runner: Any
    if kind == "zero3":
        runner = Zero3(model, blocks_of(model), torch.optim.AdamW, **ADAMW)
    else:
        runner = {"zero1": Zero1, "zero2": Zero2}[kind](model, torch.optim.AdamW, **ADAMW)
    for step in range(2):
        ids = mine(rows(step, 0))
        model(ids, labels=ids).loss.backward()
        if kind == "zero1":
            runner.reduce()
        if step == 0:
            runner.step()
    tensors = {
        "weights": [*model.parameters(), *runner.shares],
        "gradients": [p.grad for p in (*model.parameters(), *runner.shares) if p.grad is not None],
        "states": [value for state in runner.optimizer.state.values() for value in state.values() if value.ndim],
    }
    found = {}
    for name, each in tensors.items():
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in each}
        storages.pop(0, None)  # of freed weights, and of empty shares
        found[name] = sum(storages.values())
    return found


def fails_on_one() -> int:
    if dist.get_rank() == 1:
        raise ValueError("rank 1 has had enough")
    dist.barrier()
    return 0


def hangs() -> None:
    if dist.get_rank() == 0:
        dist.barrier()


def dies() -> None:
    import os
    import signal

    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def collective(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    """What the ring gives, what the library gives, and the bytes that this rank has sent."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(dist.get_rank()))
    collectives.WIRE.clear()
    if name == "broadcast":
        ours, library = collectives.ring_broadcast(tensor, 1), tensor.clone()
        dist.broadcast(library, 1)
    elif name == "naive_all_reduce":
        ours, library = collectives.naive_all_reduce(tensor), collectives.LIBRARY.all_reduce(tensor)
    else:
        ours, library = (getattr(way, name)(tensor) for way in (collectives.RING, collectives.LIBRARY))
    return ours, library, collectives.WIRE.sent


def unused() -> tuple[Tensor, Tensor]:
    """The bucketed gradients of two layers of which each rank uses one; they arrive in another order on each."""
    layers = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(2))
    runner = DataParallel(layers, bucket_bytes=1)
    layers[dist.get_rank()](torch.ones(1, 3)).sum().backward()
    runner.finish()
    return layers[0].weight.grad, layers[1].weight.grad


def library_held(kind: str) -> dict[str, int]:
    """Bytes of this rank's weights, gradients and states under `DistributedDataParallel` or `fully_shard`."""
    model: Any = GPT(CONFIG)
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    for step in range(2):
        ids = mine(rows(step, 0))
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()

    def size(tensors: Any) -> int:
        return sum((t.to_local() if hasattr(t, "to_local") else t).nbytes for t in tensors)

    return {
        "weights": size(model.parameters()),
        "gradients": size(p.grad for p in model.parameters()),
        "states": size(value for state in optimizer.state.values() for value in state.values() if value.ndim),
    }


def bytes_of_ddp() -> int:
    """Bytes that `DistributedDataParallel` takes when it is made around a model that is there.

    The least of 25: the shapes it sends when it is made are freed by whoever held them last, and where that is gloo's
    thread the profiler doesn't see it. On a busy machine that was so five times running.
    """
    from llm_core.costs.memory import memory_curve

    kept: list[nn.Module] = []

    def once() -> int:
        model = GPT(CONFIG)
        return memory_curve(lambda: kept.append(nn.parallel.DistributedDataParallel(model))).held[-1]

    return min(once() for _ in range(25))
