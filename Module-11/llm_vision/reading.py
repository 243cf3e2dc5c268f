"""Every digit of a page from the tokens of its patches: what a patch may hold before reading stops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from llm_align.evaluate.intervals import Interval, wilson
from torch import Tensor, nn
from torch.nn import functional as F

from llm_vision.config import VisionConfig
from llm_vision.drawn.glyphs import CELL
from llm_vision.patches import unpatchify
from llm_vision.training import PictureModule
from llm_vision.vit import ViT


class PageReader(PictureModule):
    """A `ViT` that names the digit in each cell of a page, each from the tokens of its own patches.

    A patch of several cells names all of them from one token. A cell of several patches is named from their mean.

    Args:
        config: of the tower.
        cell: pixels of a cell's side.
        options: those of `PictureModule`.
    """

    def __init__(self, config: VisionConfig, cell: int = CELL, **options: Any) -> None:
        super().__init__(**options)
        self.vision, self.cell = ViT(config), cell
        self.cells = max(1, config.patch_size // cell)  # of a patch's side
        self.head = nn.Linear(config.hidden_size, self.cells**2 * 10)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch 10 rows rows"]:  # fmt: skip
        """Logits of ten digits for each cell."""
        tokens, p = self.vision(images).last_hidden_state, self.vision.config.patch_size
        rows, side = images.shape[-1] // self.cell, images.shape[-1] // p
        if p < self.cell:
            grid = tokens.mT.unflatten(2, (side, side))  # (B, C, side, side)
            tokens = F.avg_pool2d(grid, self.cell // p).flatten(2).mT
        return unpatchify(self.head(tokens), self.cells, rows, rows)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of the digits, the mean over cells, in nats."""
        return F.cross_entropy(self(batch["pixel_values"]), batch["digits"])


@torch.no_grad()
def digits_read(
    reader: PageReader, images: Float[Tensor, "batch channels height width"], digits: Int[Tensor, "batch rows rows"]
) -> Interval:
    """Share of the digits that are named right, with Wilson's interval at 95%."""
    found = torch.cat([reader(some).argmax(dim=1) for some in images.split(100)])
    return wilson(int((found == digits).sum()), digits.numel())
