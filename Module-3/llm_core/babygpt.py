"""`BabyGPT`: any causal language model as a LightningModule."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from llm_data.datamodule import LLMDataModule
from llm_data.measures import bits_per_byte
from torch import Tensor, nn

from llm_core.fast import fast
from llm_core.foreign import Questions, forward_options, refuse_unless_it_fits
from llm_core.losses import causal_loss, chunked_causal_loss, perplexity
from llm_core.model import GPT, GPTConfig
from llm_core.optimizers import gradients_of, parameter_groups, rate_factor
from llm_core.store.checkpoints import describe
from llm_core.store.registry import load_model
from llm_core.store.resume import (
    forget_foreign_places,
    refuse_another_shape,
    refuse_other_states,
    refuse_other_steps,
    settle_progress,
)
from llm_core.store.rng import RandomState

# Where several batches make a step, the backward pass starts from the sum of the losses divided by this, of the size of
# a mean; the step mends it once the number of targets is known. A power of two: it costs no rounding.
SCALE = 1024
OPTIONS = ("learning_rate", "warmup_steps", "min_lr_ratio", "weight_decay", "betas", "loss_chunk")


class NonFiniteLoss(RuntimeError):
    """Training met a loss or a gradient that is not a number. The weights are those before that step."""


class BabyGPT(pl.LightningModule):
    """A causal language model with its loss, its optimiser and its schedule.

    The loss of a step is the sum over all its targets divided by their number, over every batch that is accumulated and
    every device: it does not depend on how a step's rows are cut into batches.

    Logged at every `log_every_n_steps`-th step: `train_loss`, `train_perplexity`, `train_bits_per_byte` (with an
    `LLMDataModule`), `learning_rate`, `grad_norm` (before clipping), `tokens_per_second`; after validation and test the
    first three as `val_...` and `test_...`. `step_loss` is the last step's, in nats. Checkpoints hold the model's
    configuration, the tokenizer and the random states.

    Args:
        model: a `GPTConfig` for a new model of ours, a `GPT`, or a causal language model of transformers.
        learning_rate: at the end of the warm-up.
        warmup_steps: of a linear rise; a cosine follows, down to `min_lr_ratio` of the rate at the last step.
        min_lr_ratio: share of the rate that is left at the end.
        weight_decay: decoupled, on matrices only.
        betas: of AdamW.
        loss_chunk: tokens whose logits exist at a time (`chunked_causal_loss`), for large vocabularies; 0 for all.

    Raises:
        ValueError: for numbers that cannot be; when a run begins, also for a tokenizer or rows that the model is too
            small for, a warm-up as long as the run, a run without an end.
        NonFiniteLoss: in training, before a step that would spoil the weights.
    """

    total_norm: Any = staticmethod(nn.utils.get_total_norm)  # of gradients; a trainer that shards them sets its own
    multiply: Any = staticmethod(torch._foreach_mul_)

    def __init__(
        self, model: GPTConfig | nn.Module, learning_rate: float = 1e-3, warmup_steps: int = 100,
        min_lr_ratio: float = 0.1, weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95), loss_chunk: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value, allowed, holds in (
            ("learning_rate", learning_rate, "above 0", learning_rate > 0),
            ("warmup_steps", warmup_steps, "0 or more", warmup_steps >= 0),
            ("min_lr_ratio", min_lr_ratio, "in [0, 1]", 0 <= min_lr_ratio <= 1),
            ("weight_decay", weight_decay, "0 or more", weight_decay >= 0),
            ("loss_chunk", loss_chunk, "0 or more", loss_chunk >= 0),
        ):
            if not holds:
                raise ValueError(f"{name}={value} must be {allowed}")
        self.save_hyperparameters(*OPTIONS)  # by name: whole models, which a subclass takes, would be copied too
        # What `from_pretrained` of any library gives is in evaluation mode, and would be trained without its dropout.
        self.model = fast((GPT(model) if isinstance(model, GPTConfig) else model).train())
        self._losses, self._targets = torch.zeros(()), torch.zeros((), dtype=torch.long)
        self.step_loss, self._last_good = math.nan, math.nan
        self._asked = Questions()
        self._clock: float | None = None

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> BabyGPT:
        """A model of transformers (GPT-2, Llama, Mistral ...) from a folder or the hub, in float32, to train on.

        Raises:
            ValueError: when there is no such model, or no network.
        """
        return cls(load_model(name_or_path, transformers=True)[0], **options)

    def forward(self, input_ids: Tensor, **others: Tensor) -> Tensor:
        """Logits, (batch, time, vocab).

        Raises:
            ValueError: for a model of another library that would be trained on another text than ours; see `foreign`.
        """
        self._asked(self.model, "position_ids" in others, self.hparams["loss_chunk"] > 0)
        logits: Tensor = self.model(input_ids, **others, **forward_options(self.model)).logits
        return logits

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum of the losses of a batch, in nats, and the number of its targets."""
        inputs: dict[str, Any] = {name: values for name, values in batch.items() if name != "labels"}
        chunk: int = self.hparams["loss_chunk"]
        if not chunk:
            return causal_loss(self(**inputs), batch["labels"])
        if isinstance(self.model, GPT):
            hidden, head = self.model.features(**inputs), self.model.lm_head
        else:
            self._asked(self.model, "position_ids" in inputs, chunked=True)
            body: Any = self.model
            hidden = body.base_model(**inputs, **forward_options(body)).last_hidden_state
            head = body.get_output_embeddings()
        return chunked_causal_loss(hidden, head.weight, batch["labels"], chunk)

    # -- training -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Compare the model with the data it is about to meet."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, LLMDataModule):
            refuse_unless_it_fits(self.model, data, stage)

    def configure_callbacks(self) -> list[pl.Callback]:
        return [RandomState()]

    def configure_optimizers(self) -> Any:
        steps, warmup = self.trainer.estimated_stepping_batches, self.hparams["warmup_steps"]
        if math.isinf(steps):
            raise ValueError("the schedule needs the length of the run: give the Trainer max_steps or max_epochs")
        if warmup >= steps and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ValueError(f"warmup_steps={warmup} leaves nothing of a run of {int(steps)} steps; lower it")
        groups = parameter_groups(self.model, self.hparams["weight_decay"])
        optimizer = torch.optim.AdamW(
            groups, lr=self.hparams["learning_rate"], betas=self.hparams["betas"],
            fused=self.trainer.precision != "16-mixed",  # a fused step unscales by itself, and forbids clipping before
        )  # fmt: skip
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(step, warmup, int(steps), self.hparams["min_lr_ratio"])
        )
        # Lightning's default interval is the epoch: the rate would stay at its first value for a whole one.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        self._losses, self._targets = torch.zeros(()), torch.zeros((), dtype=torch.long)  # of an interrupted run's step

    def on_train_batch_start(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self._clock = self._clock or time.perf_counter()

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        total, targets = self.loss(batch)
        self._losses = self._losses.to(total.device) + total.detach()
        self._targets = self._targets.to(targets.device) + targets
        # The only batch of a step knows the number of targets already.
        return total / (targets.clamp(min=1) if self._batches == 1 else SCALE)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the gradients into those of the mean over all targets of this step."""
        losses: Any = self.trainer.strategy.reduce(self._losses, reduce_op="sum")
        targets: Any = self.trainer.strategy.reduce(self._targets, reduce_op="sum")
        self._losses, self._targets = torch.zeros_like(losses), torch.zeros_like(targets)
        self._step_targets = int(targets)
        self.step_loss = losses.item() / max(self._step_targets, 1)
        # Lightning has divided by the number of batches on a device, its strategy by that of the devices.
        if self._batches > 1:
            factor = SCALE * self._batches / max(self._step_targets, 1)
            torch._foreach_mul_(gradients_of(optimizer), factor)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Free the gradients at once; Lightning would keep them beside all that the next forward pass saves."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    @property
    def _batches(self) -> int:
        return self.trainer.accumulate_grad_batches * self.trainer.world_size

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:  # fmt: skip
        """Measure the norm of all gradients, stop where it or the loss is not finite, clip, and log."""
        gradients = gradients_of(optimizer)
        norm = self.total_norm(gradients).item()
        self._stop_unless_finite(norm)
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif gradient_clip_val and norm > gradient_clip_val:
            self.multiply(gradients, gradient_clip_val / norm)
        now = time.perf_counter()
        seconds, self._clock = now - (self._clock or now), now
        trainer: Any = self.trainer
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # a value takes Lightning some half a ms
            values = self._measures("train", self.step_loss)
            self.log("train_loss", values.pop("train_loss"), prog_bar=True)
            self.log_dict({
                **values, "grad_norm": norm,
                "learning_rate": optimizer.param_groups[0]["lr"],
                "tokens_per_second": self._step_targets / seconds if seconds else math.nan,
            })  # fmt: skip

    def _stop_unless_finite(self, norm: float) -> None:
        # With a scaler (16-bit floats) an overflow of the gradients is part of the search for its factor.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if math.isfinite(self.step_loss) and (scaled or math.isfinite(norm)):
            self._last_good = self.step_loss
            return
        good = "none" if math.isnan(self._last_good) else f"{self._last_good:.4f}"
        raise NonFiniteLoss(
            f"step {self.trainer.global_step + 1}: loss {self.step_loss:.4g}, gradient norm {norm:.4g}; the last good "
            f"loss was {good}. This step is not taken, and the last checkpoint stays. Usual causes: too high "
            "a learning rate or too short a warm-up, no gradient clipping, "
            "16-bit floats that overflow (take bf16 or 32), broken weights"
        )

    # -- validation and test --------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._eval_losses, self._eval_targets = 0.0, 0

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        total, targets = self.loss(batch)
        self._eval_losses += total.item()
        self._eval_targets += int(targets)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_validation_end(self) -> None:
        self._clock = None  # a validation is no part of the next step's time

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        """The loss over all targets of all devices, and what follows from it."""
        # Sums, not means: each device's rows have another number of targets.
        strategy = self.trainer.strategy
        losses: Any = strategy.reduce(torch.tensor(self._eval_losses, device=self.device), reduce_op="sum")
        targets: Any = strategy.reduce(torch.tensor(self._eval_targets, device=self.device), reduce_op="sum")
        measures = self._measures(split, losses.item() / max(int(targets), 1))
        self.log_dict(measures, prog_bar=True, sync_dist=True)  # equal on all devices already; Lightning asks for it

    def _measures(self, split: Any, loss: float) -> dict[str, float]:
        values = {f"{split}_loss": loss, f"{split}_perplexity": perplexity(loss)}
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, LLMDataModule):
            manifest = data.tokens(split).manifest
            values[f"{split}_bits_per_byte"] = bits_per_byte(loss, manifest.text_tokens, manifest.text_bytes)
        return values

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = getattr(self.trainer, "datamodule", None)
        tokenizer = data.tokenizer if isinstance(data, LLMDataModule) else None
        checkpoint.update(describe(self.model, tokenizer), last_good_loss=self._last_good, step=self._step)

    @property
    def _step(self) -> dict[str, int] | None:
        """Rows and batches of a whole step, over all devices, where the data says."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, LLMDataModule):
            return None
        return {"rows": data.batch_size * self._batches, "batches": self.trainer.accumulate_grad_batches}

    @property
    def inside_a_step(self) -> bool:
        """Whether some batches of a step were seen, and its weights not changed yet."""
        return bool(self._targets > 0)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        forget_foreign_places(checkpoint)
        refuse_another_shape(checkpoint, self.model)
        trainer: Any = self.trainer
        if trainer.state.fn == "fit":
            refuse_other_steps(checkpoint.get("step"), self._step, trainer.max_epochs not in (None, -1))
            refuse_other_states(checkpoint, parameter_groups(self.model, self.hparams["weight_decay"]))
            if not trainer.overfit_batches and trainer.limit_train_batches == 1.0:
                settle_progress(checkpoint)
        self._last_good = checkpoint.get("last_good_loss", math.nan)
