"""What the tests of the engine run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from llm_core.model import GPT
from llm_scale.parallel.engine import Engine
from parallel_jobs import ADAMW, CONFIG, rows

STEPS, PASSES, NORM = 6, 3, 0.5


def alone() -> list[float]:
    """One process that takes all rows of a step's three passes."""
    torch.manual_seed(0)
    model, losses = GPT(CONFIG), []
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    for step in range(STEPS):
        ids = torch.cat([rows(step, part) for part in range(PASSES)])
        loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def by_the_engine(stage: int) -> list[float]:
    """The same steps in three passes of four rows on each of two ranks."""
    torch.manual_seed(0)
    config = {
        "train_batch_size": 24, "train_micro_batch_size_per_gpu": 4, "gradient_clipping": NORM,
        "zero_optimization": {"stage": stage},
    }  # fmt: skip
    engine, losses = Engine(GPT(CONFIG), torch.optim.AdamW, config, **ADAMW), []
    for step in range(STEPS):
        total = torch.zeros(())
        for part in range(PASSES):
            ids = rows(step, part).chunk(dist.get_world_size())[dist.get_rank()]
            loss = engine(ids, labels=ids).loss
            engine.backward(loss)
            engine.step()
            total += loss.detach() / PASSES
        dist.all_reduce(total)
        losses.append(total.item() / dist.get_world_size())
    return losses
