"""The progress line and the silence, with a real Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from course.lightning_tools import ProgressLine, quiet


class Tiny(pl.LightningModule):
    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.fail_at = fail_at

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if index == self.fail_at:
            raise RuntimeError("boom")
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module: Tiny, tmp_path: Any) -> None:
    quiet()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ProgressLine("fit")],
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=2))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_line_counts_steps_and_shows_the_loss(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Tiny(), tmp_path)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fit 8/8  loss ")
    assert said.err == ""


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_an_error_ends_the_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="boom"):
        fit(Tiny(fail_at=2), tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("fit 2/8") and said.endswith("\n")
