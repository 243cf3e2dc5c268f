"""The same training run as a `LightningModule` and a `LightningDataModule`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_basics.classifier import ClassifierConfig, LineClassifier
from lightning_basics.data import Vocabulary, load_lines
from lightning_basics.recipe import Recipe, make_optimizer, train_loader, val_loader

Batch = Sequence[Tensor]  # inputs (batch, time) and labels (batch), as a tuple or a list


class LitLineClassifier(pl.LightningModule):
    """A `LineClassifier` with its loss and its optimiser: all that a training run needs to know of the model.

    Args:
        config: sizes of the model.
        recipe: learning rate, schedule and decay; the rest of it is for the Trainer.
    """

    def __init__(self, config: ClassifierConfig, recipe: Recipe) -> None:
        super().__init__()
        self.model = LineClassifier(config)
        self.recipe = recipe

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch num_classes"]:
        return self.model(tokens)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        inputs, labels = batch
        loss = F.cross_entropy(self(inputs), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, labels = batch
        logits = self(inputs)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log("val_loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val_accuracy", accuracy, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = make_optimizer(self.model, self.recipe)
        # Lightning's default interval is "epoch": the rate would stay at the first warm-up value for a whole epoch.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class LineDataModule(pl.LightningDataModule):
    """Lines of the standard library as batches of word ids.

    Args:
        recipe: batch size and seed.
        context: words in a line; longer ones are cut.
        vocab_size: ids in all.
        **load_args: passed on to `load_lines`.
    """

    def __init__(self, recipe: Recipe, context: int = 24, vocab_size: int = 4096, **load_args: Any) -> None:
        super().__init__()
        self.recipe, self.context, self.vocab_size, self.load_args = recipe, context, vocab_size, load_args
        self.tensors: dict[str, tuple[Tensor, Tensor]] = {}

    def setup(self, stage: str | None = None) -> None:
        if not self.tensors:
            self.train_lines, self.val_lines = load_lines(**self.load_args)
            self.vocabulary = Vocabulary(self.train_lines.texts, self.vocab_size)
            self.tensors = {
                side: (self.vocabulary.encode(lines.texts, self.context), torch.tensor(lines.labels))
                for side, lines in (("train", self.train_lines), ("val", self.val_lines))
            }

    def train_dataloader(self) -> DataLoader:
        return train_loader(*self.tensors["train"], self.recipe)

    def val_dataloader(self) -> DataLoader:
        return val_loader(*self.tensors["val"])
