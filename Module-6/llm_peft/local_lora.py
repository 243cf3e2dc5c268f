"""`LocalLoRA`: BabyGPT's training on a pretrained model of which an adapter is trained, and nothing else kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from llm_core.babygpt import BabyGPT
from llm_core.foreign import max_positions, vocab_rows
from llm_core.optimizers import parameter_groups
from llm_core.store.checkpoints import describe
from llm_core.store.resume import (
    forget_foreign_places,
    refuse_other_states,
    refuse_other_steps,
    settle_progress,
)
from llm_data.rows.module import RowsDataModule
from llm_scale.trainer.checks import local_numbers, most_numbers
from llm_scale.trainer.model import shard_blocks
from llm_scale.trainer.settings import Parallel
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from llm_peft.chat.datamodule import ChatDataModule
from llm_peft.prepare import Prepared, gathered, load_trained_state, trained_state
from llm_peft.settings import FineTune
from llm_peft.sharded import here, whole

ADAPTER = "adapter"  # key of a checkpoint: what the tensors belong to


class NothingTrained(RuntimeError):
    """A step changed what it should not, or did not change what it should."""


class LocalLoRA(BabyGPT):
    """A pretrained model that is fine-tuned, whole or by an adapter, on instruction data.

    Loss, schedule, clipping and logging are BabyGPT's. A checkpoint holds what is trained and nothing of the frozen
    model. After the first step it is compared with the beginning: some B must have moved, and no frozen weight.

    Args:
        model: from `prepare`.
        settings: what it was prepared with.
        learning_rate: at the end of the warm-up; an adapter bears three to five times that of a full
            fine-tuning (lesson 2).
        warmup_steps: of a linear rise; a cosine follows.
        min_lr_ratio: share of the rate that is left at the end.
        weight_decay: decoupled, on matrices only.
        betas: of AdamW.
        loss_chunk: tokens whose logits exist at a time, for large vocabularies; 0 for all.

    Raises:
        ValueError: as BabyGPT.
        NothingTrained: after the first step, when the wrong things moved.
    """

    def __init__(
        self, model: Prepared, settings: FineTune, learning_rate: float = 2e-4, warmup_steps: int = 10,
        min_lr_ratio: float = 0.1, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999),
        loss_chunk: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(model.model, learning_rate, warmup_steps, min_lr_ratio, weight_decay, betas, loss_chunk)
        self.prepared, self.settings = model, settings
        self.strict_loading = False  # a checkpoint holds the adapter alone
        self._start: dict[str, Tensor] | None = None
        self._cut = False
        begins = {name: values.clone() for name, values in trained_state(self.model).items()}
        self._first = begins if settings.lora.init_lora_weights == "pissa" and settings.method != "full" else {}

    # -- several devices ---------------------------------------------------------------------------------------------

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of all gradients together, which may be in shards; the same number on every rank."""
        return whole(nn.utils.get_total_norm(gradients))

    def configure_model(self) -> None:
        """Cut the weights over the ranks, where the strategy is `FullyShardAdapter`; called at each fit."""
        strategy = self.trainer.strategy
        if self._cut or not isinstance(strategy, ModelParallelStrategy):
            return
        mesh: Any = self.device_mesh
        size, ranks = mesh["data_parallel"].size(), self.trainer.world_size
        if size != ranks:
            wrong = f"the strategy would cut the weights over {size} of {ranks} ranks"
            raise ValueError(f"{wrong}; take llm_peft.sharded.FullyShardAdapter({ranks})")
        if self.trainer.gradient_clip_algorithm == "value":
            raise ValueError("gradient_clip_algorithm=value: gradients in shards are clipped by norm; take norm")
        if self.hparams["loss_chunk"]:
            raise ValueError("model.loss_chunk calls parts of the model, and fsdp gathers weights for the whole; set 0")
        self._asked(self.model, packed=True, chunked=False)  # while it is whole
        self._asked: Any = _nothing
        if self.settings.method == "qlora" and self.settings.library == "ours":
            raise ValueError("library='ours' keeps four bits in buffers, which fsdp does not cut; take library='peft'")
        self._cut = True
        most = most_numbers([tuple(each.shape) for each in self.model.parameters()], Parallel("fsdp", nodes=ranks))
        shard_blocks(self.model, mesh["data_parallel"])
        held = local_numbers(self.model.parameters())
        if held > most:
            raise ValueError(f"a rank holds {held:,} numbers, and fsdp on {ranks} ranks leaves it {most:,}")

    # -- what a step must change ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Compare the model with the data it is about to meet."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(getattr(self.trainer, "datamodule", None), RowsDataModule):
            return
        rows, positions = vocab_rows(self.model), max_positions(self.model.config)
        if data.vocab_size > rows:
            wrong = f"the tokenizer has {data.vocab_size:,} tokens and the model {rows:,}"
            raise ValueError(f"{wrong}; take the tokenizer that the model was trained with")
        if positions is not None and data.context > positions:
            raise ValueError(f"context={data.context}, and the model has {positions} positions; lower context")

    def on_train_start(self) -> None:
        super().on_train_start()
        self._start = self._probes() if self.trainer.global_step == 0 else None
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        self._scale = 0.0 if scaler is None else scaler.get_scale()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._start is None or self.trainer.global_step == 0:
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 0.0 if scaler is None else scaler.get_scale()
        if scale < self._scale:  # an overflow: the step was left out, and the factor halved
            self._scale = scale
            return
        before, self._start = self._start, None
        refuse_wrong_changes(before, self._probes(), self.settings.method)

    def _probes(self) -> dict[str, Tensor]:
        """Copies of what is trained, and a few numbers of each frozen tensor as bytes: those of four bits are no
        floats, whatever their type says."""
        for part in self.model.modules():
            if isinstance(part, FSDPModule):  # what has no gradient stays gathered after the forward pass
                part.reshard()
        found = {f"trained {name}": here(values).clone() for name, values in trained_state(self.model).items()}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                flat = here(parameter.detach()).reshape(-1)
                found[f"frozen {name}"] = flat[:: max(1, len(flat) // 64)].clone().view(torch.uint8)
        return found

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = gathered(trained_state(self.model))
        checkpoint["state_dict"] = {f"model.{name}": values for name, values in kept.items()}
        checkpoint.update(
            describe(self.model, self.prepared.tokenizer), last_good_loss=self._last_good, step=self._step
        )
        checkpoint[ADAPTER] = {
            "base": self.prepared.base, "base_name": self.prepared.base_name, "method": self.settings.method,
            "lora": {**vars(self.settings.lora)}, "start": self._first,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        forget_foreign_places(checkpoint)
        told = checkpoint.get(ADAPTER)
        if told is None:
            raise ValueError("the checkpoint is of another kind of run, and holds no adapter; take one of local-lora")
        refuse_another_base(told, self.prepared)
        for name, ours in (("method", self.settings.method), ("lora", vars(self.settings.lora))):
            if told[name] != ours:
                raise ValueError(f"the run was made with {name}={told[name]}, and not {ours}; leave it so")
        load_trained_state(
            self.model, {name.removeprefix("model."): values for name, values in checkpoint["state_dict"].items()}
        )
        checkpoint["state_dict"] = {}
        trainer: Any = self.trainer
        if trainer.state.fn == "fit":
            refuse_other_steps(checkpoint.get("step"), self._step, trainer.max_epochs not in (None, -1))
            refuse_other_states(checkpoint, parameter_groups(self.model, self.hparams["weight_decay"]))
            if not trainer.overfit_batches and trainer.limit_train_batches == 1.0:
                settle_progress(checkpoint, type(trainer.datamodule).__qualname__)
        self._last_good = checkpoint.get("last_good_loss", math.nan)

    @property
    def _step(self) -> dict[str, int] | None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, RowsDataModule):
            return None
        return {"rows": data.batch_size * self._batches, "batches": self.trainer.accumulate_grad_batches}


def _nothing(*_: Any, **__: Any) -> None:
    """No question."""


def refuse_another_base(told: dict[str, Any], prepared: Prepared) -> None:
    """Raise a ValueError for an adapter that was trained on other weights."""
    if told["base"] != prepared.base:
        raise ValueError(
            f"the adapter was trained on {told['base_name']} (weights {told['base']}), and {prepared.base_name} has "
            f"weights {prepared.base}; give the model that it was trained on"
        )


def refuse_wrong_changes(before: dict[str, Tensor], after: dict[str, Tensor], method: str) -> None:
    """Compare a model after its first step with the beginning.

    Raises:
        NothingTrained: when no B of an adapter moved, or a frozen weight did.
    """
    moved = {name for name, values in after.items() if not torch.equal(values, before[name])}
    for name in sorted(moved):
        if name.startswith("frozen "):
            raise NothingTrained(f"the first step changed {name.removeprefix('frozen ')}, which is frozen; stopping")
    wanted = "lora_B" if method != "full" else ""
    if not any(name.startswith("trained ") and name.endswith(wanted) for name in moved):
        raise NothingTrained(
            "the first step changed nothing that is trained: the loss has no way to the adapter (all labels ignored, "
            "learning rate 0, or checkpointing without input gradients); stopping"
        )


def fit(module: LocalLoRA, data: ChatDataModule, **trainer: Any) -> pl.Trainer:
    """Train in a notebook: quiet, with nothing written; the Trainer afterwards."""
    from llm_core.forgetting import SILENT

    data.tokenizer = module.prepared.tokenizer
    made = pl.Trainer(**{**SILENT, "devices": 1, "gradient_clip_val": 1.0, "num_sanity_val_steps": 0, **trainer})
    made.fit(module, data)
    return made
