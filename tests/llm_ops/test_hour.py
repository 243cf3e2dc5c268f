"""The record of a GPU-hour, at toy size."""

import pytest
from llm_ops.records import hour

from course.record import Setting


def test_rows_at_toy_size(monkeypatch):
    rows = list(hour.tokens(Setting("cpu", toy=True)))
    assert [row["row"] for row in rows] == ["1B, batch 2", "8B, batch 2"] and not any("missing" in row for row in rows)
    for row in rows:
        written = row["tokens_per_second"] * row["seconds"]
        assert 6 * 2 <= round(written) <= 6 * 6 and written == pytest.approx(round(written))
        assert row["tokens_per_gpu_hour"] == pytest.approx(3600 * row["tokens_per_second"])
        assert set(row["costs"]) == {"fixed", "per_sequence", "per_prompt_token", "beside"}

    def full(*_):
        raise torch.OutOfMemoryError("it does not fit")

    import torch

    monkeypatch.setattr(hour, "random_gpt", full)
    assert all("missing" in row for row in hour.tokens(Setting("cpu", toy=True)))
