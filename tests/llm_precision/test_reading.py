"""The bandwidth at which a product reads its matrix."""

from __future__ import annotations

import pytest
import torch
from llm_precision import roofline


def test_the_bytes_of_the_matrix_are_counted_once(monkeypatch):
    seen = {}

    def known(works, device, rounds, warmup, repeats):
        seen.update({name: work() for name, work in works.items()})
        return {name: [1.0, 2.0, 5.0] for name in works}

    monkeypatch.setattr(roofline, "interleaved", known)
    assert roofline.read_bandwidth("cpu", 4_010, 10) == 100 * 10 * 4 / 2.0  # 100 whole rows; the median
    assert seen["read"].shape == (1, 100) and seen["read"].abs().min() > 0


def test_a_width_that_gives_no_row_is_refused():
    for width in (0, 101):
        with pytest.raises(ValueError, match=f"width={width} must be from 1 to 100"):
            roofline.read_bandwidth("cpu", 400, width)
    assert torch.isfinite(torch.tensor(roofline.read_bandwidth("cpu", 400, 100, rounds=2)))
