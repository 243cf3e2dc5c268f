"""BabyGPT with experts: its loss, and what keeps them balanced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from llm_core.babygpt import SCALE, BabyGPT
from llm_core.model import GPT
from torch import Tensor

from llm_moe.balance import load
from llm_moe.model import router_loss, routings, sparse_layers


class SparseBabyGPT(BabyGPT):
    """A model of `sparse_gpt` or `upcycle` under Lightning.

    The routers' loss is added to each token's; the loss that is logged and validated is the language model's alone.
    With balance="bias" the biases move after each step. Logged beside BabyGPT's measures: `router_loss`, and
    `fullest_expert`, the largest load over layers (1 is balance).

    Args:
        model: with sparse layers.
        options: those of `BabyGPT`.

    Raises:
        ValueError: for a model without sparse layers, and for `loss_chunk`.
    """

    def __init__(self, model: GPT, **options: Any) -> None:
        if not sparse_layers(model):
            raise ValueError("the model has no sparse layers; take sparse_gpt or upcycle")
        if options.get("loss_chunk"):
            raise ValueError("loss_chunk is not made for sparse models; leave it at 0")
        super().__init__(model, **options)
        self._router = torch.zeros(())

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        mask = batch.get("attention_mask")
        self._router = router_loss(self.model, mask)
        # As much of a step as this batch's targets are: the loss is a mean over all targets of a step, and so is this.
        targets = (batch["labels"][:, 1:] != -100).sum()
        share = targets / targets.clamp(min=1) if self._batches == 1 else targets / SCALE
        return loss + share * self._router

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for layer in sparse_layers(self.model):
            if layer.sparse.balance == "bias":
                layer.move_bias()

    def _measures(self, split: Any, loss: float) -> dict[str, float]:
        found = super()._measures(split, loss)
        if split == "train":
            found["router_loss"] = float(self._router.detach())
            found["fullest_expert"] = max(float(load(each).max()) for each in routings(self.model))
        return found
