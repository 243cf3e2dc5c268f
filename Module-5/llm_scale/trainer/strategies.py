"""Lightning's strategy for a run that `settings.Parallel` describes, with checkpoints of our own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from llm_core.model import GPT, Block
from pytorch_lightning.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import nn

from llm_scale.trainer.checkpoints import ShardedCheckpoints
from llm_scale.trainer.settings import Parallel
from llm_scale.trainer.zero import DeepSpeed


def refuse_indivisible(model: nn.Module, size: int) -> None:
    """Compare a model with the ranks that each matrix is to be cut for.

    Raises:
        ValueError: for another model than ours, and for heads or a width of the MLP that N ranks cannot share.
    """
    if not isinstance(model, GPT):
        wrong = (
            f"strategy=tensor-parallel knows which matrix to cut how for llm_core's GPT, not for {type(model).__name__}"
        )
        raise ValueError(f"{wrong}; take fsdp")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        value = getattr(model.config, name)
        if value % size:
            raise ValueError(
                f"strategy=tensor-parallel: {name}={value} is no multiple of {size} ranks; change one of them"
            )


class Single(ShardedCheckpoints, SingleDeviceStrategy):
    """One process, whose checkpoints any other strategy goes on from."""


class DataParallel(ShardedCheckpoints, DDPStrategy):
    """Every rank holds everything; the weights of a checkpoint are written once."""


class FullyShard(ShardedCheckpoints, ModelParallelStrategy):
    """FSDP2 and tensor parallel: `configure_model` cuts the weights, here is the mesh."""


class OlderFullyShard(ShardedCheckpoints, FSDPStrategy):
    """FSDP1, as older code has it."""


def make_strategy(parallel: Parallel) -> Strategy:
    """Lightning's strategy, with checkpoints that are sharded and whole or not there.

    `ModelParallelStrategy()` with its own defaults takes all ranks of a node for tensor parallel, which leaves one to
    data parallel: `fully_shard` over that one shards nothing. Both sizes are given here.
    """
    ranks, timeout = parallel.ranks, timedelta(seconds=parallel.timeout)
    if parallel.strategy == "single":
        return Single(device=torch.device(parallel.device, 0) if parallel.device == "cuda" else torch.device("cpu"))
    if parallel.strategy == "ddp":
        return DataParallel(timeout=timeout)
    if parallel.strategy == "fsdp":
        return FullyShard(data_parallel_size=ranks, tensor_parallel_size=1, timeout=timeout)
    if parallel.strategy == "tensor-parallel":
        return FullyShard(data_parallel_size=1, tensor_parallel_size=ranks, timeout=timeout)
    if parallel.strategy == "deepspeed":
        return DeepSpeed(parallel)
    return OlderFullyShard(auto_wrap_policy={Block}, state_dict_type="sharded", timeout=timeout)


def trainer_options(parallel: Parallel) -> dict[str, Any]:
    """What `pl.Trainer` has to be given for a run like this."""
    return {
        "strategy": make_strategy(parallel), "devices": parallel.devices, "num_nodes": parallel.nodes,
        "accelerator": "gpu" if parallel.device == "cuda" else "cpu", "precision": parallel.precision,
    }  # fmt: skip
