"""A page's digits are named from their own patches, and learned where a patch is a cell."""

from __future__ import annotations

import pytest
import torch
from llm_vision import recipes
from llm_vision.config import VisionConfig
from llm_vision.data import Table
from llm_vision.drawn import glyphs
from llm_vision.images import Preprocess
from llm_vision.reading import PageReader, digits_read


@pytest.mark.parametrize(("patch_size", "cell"), [(4, 8), (8, 8), (16, 8), (32, 8), (8, 16)])
def test_each_digit_is_named_from_the_patches_of_its_own_cell(patch_size, cell):
    """Without blocks a token knows its own patch only: a cell that changes moves its own logits, and its patch's."""
    torch.manual_seed(0)
    config = VisionConfig(32, patch_size, hidden_size=16, num_hidden_layers=1, initializer_range=0.3, class_token=False)
    reader = PageReader(config, cell)
    reader.vision.layers = torch.nn.ModuleList()
    images, rows = torch.randn(1, 3, 32, 32), 32 // cell
    other = images.clone()
    other[:, :, cell : 2 * cell, :cell] += 1  # the cell of row 1, column 0
    with torch.no_grad():
        before, after = reader(images), reader(other)
    assert before.shape == (1, 10, rows, rows)
    moved = (before != after).any(dim=1)[0]
    wide = max(1, patch_size // cell)
    wanted = torch.zeros(rows, rows, dtype=torch.bool)
    wanted[1 // wide * wide : (1 // wide + 1) * wide, :wide] = True
    assert torch.equal(moved, wanted)


def test_a_page_is_learned_where_a_patch_is_a_cell():
    def drawn(number, seed):
        pages, digits = glyphs.draw_pages(number, seed, side=16)
        return {"pixel_values": Preprocess(16).batch(pages), "digits": torch.from_numpy(digits)}

    torch.manual_seed(0)
    config = VisionConfig(16, 8, hidden_size=32, num_hidden_layers=1, initializer_range=0.1, class_token=False)
    reader = PageReader(config, learning_rate=4e-3)
    recipes.fit(reader, Table(**drawn(600, 0)), recipes.Run(100, 64))
    assert digits_read(reader, *drawn(100, 1).values()).value > 0.5
