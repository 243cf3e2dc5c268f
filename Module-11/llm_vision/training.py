"""Training under Lightning: a classifier of pictures, pictures with texts, and a reader whose halves are frozen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from llm_core.model import GPT
from llm_core.optimizers import parameter_groups, rate_factor
from torch import Tensor, nn
from torch.nn import functional as F

from llm_vision.contrastive import clip_loss, siglip_loss
from llm_vision.reader import PictureReader
from llm_vision.vit import ViT

Batch = Mapping[str, Tensor]
PARTS = ("vision", "projector", "language")


class PictureModule(pl.LightningModule):
    """What the three share: AdamW on what is not frozen, a warm-up and a cosine, and a stop before a loss that is not
    a number. Logged: `train_loss` and `learning_rate` of each step.

    Args:
        learning_rate: at the end of the warm-up.
        warmup_steps: of a linear rise; a cosine follows, down to `min_lr_ratio` of the rate.
        min_lr_ratio: share of the rate that is left at the end.
        weight_decay: on matrices only.

    Raises:
        ValueError: for numbers that cannot be; when a run begins, for one without an end.
        RuntimeError: for a loss that is not finite; the step is not taken.
    """

    def __init__(
        self, learning_rate: float = 1e-3, warmup_steps: int = 20, min_lr_ratio: float = 0.0, weight_decay: float = 0.05
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value, allowed, holds in (
            ("learning_rate", learning_rate, "above 0", learning_rate > 0),
            ("warmup_steps", warmup_steps, "0 or more", warmup_steps >= 0),
            ("min_lr_ratio", min_lr_ratio, "in [0, 1]", 0 <= min_lr_ratio <= 1),
            ("weight_decay", weight_decay, "0 or more", weight_decay >= 0),
        ):
            if not holds:
                raise ValueError(f"{name}={value} must be {allowed}")
        self.save_hyperparameters("learning_rate", "warmup_steps", "min_lr_ratio", "weight_decay")

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        steps, options = self.trainer.estimated_stepping_batches, self.hparams
        if math.isinf(steps):
            raise ValueError("the schedule needs the length of the run: give the Trainer max_steps or max_epochs")
        groups = [each for each in parameter_groups(self, options["weight_decay"]) if each["params"]]
        optimizer = torch.optim.AdamW(groups, lr=options["learning_rate"], betas=(0.9, 0.98))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(step, options["warmup_steps"], int(steps), options["min_lr_ratio"])
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if not math.isfinite(loss.item()):
            wrong = f"step {self.trainer.global_step + 1}: the loss is {loss.item()}"
            raise RuntimeError(f"{wrong}; the step is not taken; lower the learning rate, or look at the pixels")
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train_loss", loss.detach(), prog_bar=True)
        self.log("learning_rate", rate)
        return loss


class VisionClassifier(PictureModule):
    """A `ViT` that answers several questions about a picture, each with one of so many values.

    Args:
        vision: the tower.
        classes: of each question.
        options: those of `PictureModule`.
    """

    def __init__(self, vision: ViT, classes: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        if not classes or min(classes) < 2:
            raise ValueError(f"classes={tuple(classes)}: give each question two values at least")
        self.vision, self.classes = vision, tuple(classes)
        self.head = nn.Linear(vision.config.hidden_size, sum(self.classes))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Logits of each question, (batch, its classes)."""
        return self.head(self.vision.pooled(pixel_values)).split(self.classes, dim=-1)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over questions, in nats."""
        logits, classes = self(batch["pixel_values"]), batch["classes"]
        return torch.stack([F.cross_entropy(each, classes[:, place]) for place, each in enumerate(logits)]).mean()

    @torch.no_grad()
    def predict_classes(self, pixel_values: Tensor) -> Tensor:
        """The likeliest value of each question, (batch, questions)."""
        return torch.stack([each.argmax(dim=-1) for each in self(pixel_values)], dim=1)


class CLIPTrainer(PictureModule):
    """A `ViT` and a text tower that bring pictures and their captions together. Radford et al. 2021, figure 3.

    Args:
        vision: the tower for pictures.
        text: a `GPT`; a text is what it has at the last token, as in CLIP.
        dim: of the shared space.
        kind: "clip" or "siglip": the loss.
        options: those of `PictureModule`.
    """

    def __init__(self, vision: ViT, text: GPT, dim: int = 64, kind: str = "clip", **options: Any) -> None:
        super().__init__(**options)
        if kind not in ("clip", "siglip"):
            raise ValueError(f"kind={kind!r} is neither clip nor siglip")
        self.vision, self.text, self.kind = vision, text, kind
        self.visual_projection = nn.Linear(vision.config.hidden_size, dim, bias=False)
        self.text_projection = nn.Linear(text.config.hidden_size, dim, bias=False)
        # CLIP begins at 1 / 0.07, SigLIP at 10 and with a bias of -10: at first nearly every pair is a no.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07 if kind == "clip" else 10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if kind == "siglip" else None

    def image_embeds(self, pixel_values: Tensor) -> Float[Tensor, "batch dim"]:
        """Pictures in the shared space."""
        return self.visual_projection(self.vision.pooled(pixel_values))

    def text_embeds(self, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "batch dim"]:
        """Texts, padded on the right, in the shared space."""
        last = attention_mask.sum(dim=1) - 1
        hidden = self.text.features(input_ids, attention_mask=attention_mask)
        return self.text_projection(hidden[torch.arange(len(last), device=last.device), last])

    def loss(self, batch: Batch) -> Tensor:
        images = self.image_embeds(batch["pixel_values"])
        texts = self.text_embeds(batch["input_ids"], batch["attention_mask"])
        if self.logit_bias is None:
            return clip_loss(images, texts, self.logit_scale)
        return siglip_loss(images, texts, self.logit_scale, self.logit_bias)


class ReaderModule(PictureModule):
    """A `PictureReader` of which named parts stay as they are.

    Frozen parts have no gradient, are in no optimiser and in no checkpoint, and stay in evaluation mode. A checkpoint
    keeps a fingerprint of them, so that a projector is not loaded between other halves in silence; after training the
    fingerprint must be the one from before.

    Args:
        reader: vision, projector and language model.
        frozen: of "vision", "projector" and "language".
        options: those of `PictureModule`.

    Raises:
        ValueError: for a part that is not there, or when nothing is left to train.
    """

    strict_loading = False  # a checkpoint holds what is trained, and no more

    def __init__(
        self, reader: PictureReader, frozen: Sequence[str] = ("vision", "language"), **options: Any
    ) -> None:  # fmt: skip
        super().__init__(**options)
        unknown = sorted(set(frozen) - set(PARTS))
        if unknown or isinstance(frozen, str):
            raise ValueError(f"frozen={frozen!r}: name some of {', '.join(PARTS)}, in a tuple")
        if set(frozen) == set(PARTS):
            raise ValueError("every part is frozen; leave one out to train it")
        self.reader, self.frozen = reader, tuple(sorted(set(frozen)))
        for name in PARTS:
            getattr(reader, name).requires_grad_(name not in self.frozen)
        self._before = ""

    def train(self, mode: bool = True) -> ReaderModule:
        super().train(mode)
        for name in self.frozen:
            getattr(self.reader, name).eval()
        return self

    def loss(self, batch: Batch) -> Tensor:
        total, targets = self.reader.loss(**batch)
        return total / targets.clamp(min=1)

    def fingerprint(self) -> str:
        """Of every bit of the frozen parts' weights; empty where nothing is frozen."""
        made = hashlib.blake2b(digest_size=16)
        for part in self.frozen:
            for name, values in sorted(getattr(self.reader, part).state_dict().items()):
                made.update(f"{part}.{name}".encode())
                made.update(values.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return made.hexdigest() if self.frozen else ""

    def on_fit_start(self) -> None:
        self._before = self.fingerprint()

    def on_fit_end(self) -> None:
        if self.fingerprint() != self._before:
            raise RuntimeError(f"a frozen part ({', '.join(self.frozen)}) changed; something trained it in place")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = tuple(f"reader.{part}." for part in PARTS if part not in self.frozen)
        checkpoint["state_dict"] = {
            name: values for name, values in checkpoint["state_dict"].items() if name.startswith(kept)
        }
        checkpoint["frozen"] = {"parts": list(self.frozen), "fingerprint": self._before or self.fingerprint()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        told = checkpoint.get("frozen", {})
        if tuple(told.get("parts", ())) != self.frozen:
            raise ValueError(f"the checkpoint was trained with frozen={told.get('parts')}, and this is {self.frozen}")
        if told.get("fingerprint") != self.fingerprint():
            raise ValueError(f"the frozen parts ({', '.join(self.frozen)}) are not those it was trained between")
        wanted = {name for name, each in self.named_parameters() if each.requires_grad}
        missing = sorted(wanted - set(checkpoint["state_dict"]))
        if missing:
            raise ValueError(f"the checkpoint lacks {missing[0]}; it is incomplete, or of another reader")
