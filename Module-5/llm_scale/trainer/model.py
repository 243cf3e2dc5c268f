"""`ParallelGPT`: BabyGPT whose weights are cut over ranks before it trains, and whose gradients are measured whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from llm_core.babygpt import SCALE, BabyGPT
from llm_core.model import GPT
from llm_data.datamodule import LLMDataModule
from llm_data.rows.packing import PADDED
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from llm_scale.parallel.zero3 import blocks_of
from llm_scale.trainer.settings import SHARDED, Parallel
from llm_scale.trainer.strategies import refuse_indivisible
from llm_scale.trainer.zero import whole_shapes, with_gradients


def refuse_another_start(model: nn.Module) -> None:
    """Compare the ranks' first weights: `fully_shard` takes a part from each rank, and copies none.

    Raises:
        ValueError: when a rank has others.
    """
    sums: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sums, [parameter.detach().double().sum().item() for parameter in model.parameters()])
    others = [rank for rank, each in enumerate(sums) if each != sums[0]]
    if others:
        raise ValueError(f"rank {others[0]} begins with other weights than rank 0; call seed_everything on each rank")


def checkpoint_blocks(model: nn.Module) -> None:
    """Keep of each block its input alone, and compute the block again in the backward pass."""
    for block in blocks_of(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def shard_blocks(model: nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2: cut every parameter along its first dimension; a block's parts are gathered together, and what is in no
    block (embedding, last norm, head) is the root's."""
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if isinstance(model, GPT):  # what chunks of the loss call in place of `forward`
        register_fsdp_forward_method(model, "features")


def split_matrices(model: GPT, mesh: DeviceMesh) -> None:
    """Tensor parallel, as in Megatron-LM (Shoeybi et al. 2019, section 3): of each pair of matrices the first is cut by
    columns, so that a rank computes some heads or some channels, and the second by rows, so that one sum follows.

    Embedding and head are cut by the vocabulary. Norms, and what flows between the sublayers, are whole on every rank.
    """
    plan: dict[str, Any] = {
        **{f"self_attn.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")},
        **{f"mlp.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj")},
        "self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel(),
    }  # fmt: skip
    for block in blocks_of(model):
        parallelize_module(block, mesh, plan)
    # The names that `parallelize_module` gives the ways to cut are those of a product: an embedding's rows are its ids.
    parallelize_module(model.model, mesh, {"embed_tokens": RowwiseParallel(input_layouts=Replicate())})
    parallelize_module(model, mesh, {"lm_head": ColwiseParallel(output_layouts=Replicate())})
    if model.config.tie_word_embeddings:  # each got a cut of its own
        model.lm_head.weight = model.model.embed_tokens.weight


class ParallelGPT(BabyGPT):
    """BabyGPT on as many ranks as `parallel` says. Set it before the Trainer is given the module.

    Raises:
        ValueError: when a run begins, also for a model that `parallel` cannot cut, and for ranks that begin with other
            weights.
    """

    parallel: Parallel = Parallel()
    step_norm: float | Tensor = math.nan  # of the last step's whole gradient, before clipping
    _cut = False

    def configure_model(self) -> None:
        """Cut the model over the ranks; Lightning calls this once the ranks know each other, and at each `fit` anew."""
        if self._cut:
            return
        self._cut, model, strategy = True, self.model, self.parallel.strategy
        if strategy in (*SHARDED, "deepspeed") and self.trainer.gradient_clip_algorithm == "value":
            raise ValueError(
                f"gradient_clip_algorithm=value with strategy={strategy}: shards are clipped by norm; take norm"
            )
        if strategy == "tensor-parallel":
            refuse_indivisible(model, self.parallel.ranks)
            if self.hparams["loss_chunk"]:
                raise ValueError("model.loss_chunk has no form for strategy=tensor-parallel; set it to 0, or take fsdp")
        if strategy == "deepspeed" and self.hparams["loss_chunk"]:
            raise ValueError("model.loss_chunk has no form for strategy=deepspeed; set it to 0, or take fsdp")
        if strategy == "deepspeed" and not all(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("strategy=deepspeed trains every weight, and some are frozen; take fsdp")
        if strategy == "fsdp" and self.hparams["loss_chunk"] and not isinstance(model, GPT):
            wrong = f"model.loss_chunk calls parts of {type(model).__name__}, and fsdp gathers weights for the whole"
            raise ValueError(f"{wrong}; set it to 0, or take ddp")
        if strategy == "fsdp":  # asked while it is whole, and known: `fully_shard` gives it a class of its own
            data = getattr(self.trainer, "datamodule", None)
            self._asked(model, not isinstance(data, LLMDataModule) or data.packing not in PADDED, chunked=False)
            self._asked: Any = _nothing
        if self.parallel.activation_checkpointing:
            checkpoint_blocks(model)
        if strategy in ("fsdp", "tensor-parallel"):
            refuse_another_start(model)
            mesh: Any = self.device_mesh
            if strategy == "fsdp":
                shard_blocks(model, mesh["data_parallel"])
            else:
                assert isinstance(model, GPT)
                split_matrices(model, mesh["tensor_parallel"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """BabyGPT's. Tensor parallel leaves the norms' gradients whole among shards: they are laid aside for it, and
        get the same factor after it."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.parallel.strategy != "tensor-parallel":
            parameters = []
        whole = [each for each in parameters if each.grad is not None and not isinstance(each.grad, DTensor)]
        gradients = [each.grad for each in whole]
        for each in whole:
            each.grad = None
        super().on_before_optimizer_step(self._with_gradients(optimizer))
        for each, gradient in zip(whole, gradients, strict=True):
            each.grad = gradient
        if gradients and self._batches > 1:
            torch._foreach_mul_(gradients, SCALE * self._batches / max(self._step_targets, 1))

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *arguments: Any, **options: Any) -> None:
        super().configure_gradient_clipping(self._with_gradients(optimizer), *arguments, **options)

    def _with_gradients(self, optimizer: torch.optim.Optimizer) -> Any:
        return with_gradients(optimizer) if self.parallel.strategy == "deepspeed" else optimizer

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of the whole gradient, of which a rank may hold a part; the same number on every rank.

        Lightning's own clipping cannot for FSDP1, and refuses it by norm; BabyGPT clips by itself, from this.
        """
        squares = [nn.utils.get_total_norm(same).square() for same in _alike(gradients)]
        squares = [each.full_tensor() if isinstance(each, DTensor) else each for each in squares]
        total = torch.stack(squares).sum() if squares else torch.zeros((), device=self.device)
        older = isinstance(self.trainer.strategy.model, FullyShardedDataParallel)
        if older or self.parallel.strategy == "deepspeed":  # plain tensors that are parts
            dist.all_reduce(total)
        self.step_norm = total.sqrt()
        return self.step_norm

    @staticmethod
    def multiply(gradients: Sequence[Tensor], factor: float) -> None:
        """Scale gradients in place."""
        for same in _alike(gradients):
            torch._foreach_mul_(same, factor)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        with whole_shapes(self):  # BabyGPT compares them
            super().on_load_checkpoint(checkpoint)

    @property
    def inside_a_step(self) -> bool:
        """Whether any rank has seen batches of a step whose weights are not changed yet; every rank has to ask."""
        return bool(self.trainer.strategy.reduce(self._targets.to(self.device), reduce_op="sum") > 0)

    @property
    def _step(self) -> dict[str, int] | None:
        rows = super()._step  # ranks of tensor parallel see the same rows
        return rows and {**rows, "rows": rows["rows"] * self.parallel.data_ranks // self.parallel.ranks}


def _nothing(*_: Any, **__: Any) -> None:
    """No question."""


def _alike(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Gradients in shards and whole ones, apart: one operation takes no list of both."""
    groups = [[each for each in gradients if isinstance(each, DTensor) is sharded] for sharded in (True, False)]
    return [group for group in groups if group]
