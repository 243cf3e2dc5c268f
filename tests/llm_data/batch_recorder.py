"""A model that learns nothing and writes down what it is shown; run as a module, a training run to be killed.

python -m batch_recorder TEXT FOLDER LOG STEPS [--one-epoch]
"""

import json
import os
import random
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from llm_data.datamodule import LLMDataModule
from pytorch_lightning.callbacks import ModelCheckpoint

from course.lightning_tools import quiet


class Recorder(pl.LightningModule):
    def __init__(self, log=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []
        self.log_file = log

    def training_step(self, batch, batch_idx):
        ids = batch["input_ids"]
        step = {
            "epoch": self.current_epoch,
            "batch": batch_idx,
            "ids": int((ids * torch.arange(1, ids.shape[1] + 1)).sum()),
        }
        step["rows"] = ids[(batch["labels"] != -100).any(dim=1)].tolist()
        self.seen.append(step)
        if self.log_file is not None:
            line = {**step, "step": self.global_step, "rank": self.global_rank}
            with Path(f"{self.log_file}.{self.global_rank}").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        assert (batch["labels"] != -100).any()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def own_text(folder):
    """60 short paragraphs in one file."""
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    paragraphs = {" ".join(draw.choice(words) for _ in range(draw.randint(3, 30))) for _ in range(60)}
    path = folder / "own.txt"
    path.write_text("\n\n".join(sorted(paragraphs)))
    return path


def recorded(log):
    """All complete lines of all ranks."""
    lines = []
    for path in sorted(log.parent.glob(f"{log.name}.*")):
        lines += [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return lines


def train(text, folder, log, steps, *one_epoch):
    quiet()
    data = LLMDataModule(
        f"text:{text}", "bpe-300", context=32, batch_size=4, progress=False, val_percent=10, test_percent=0,
        cache=Path(text).parent / "cache",
    )  # fmt: skip
    checkpoint = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_top_k=0)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = pl.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[checkpoint], default_root_dir=folder,
        max_steps=int(steps), max_epochs=1 if one_epoch else -1, num_sanity_val_steps=0,
    )  # fmt: skip
    last = Path(folder) / "last.ckpt"
    trainer.fit(Recorder(log), data, ckpt_path=last if last.exists() else None)


if __name__ == "__main__":
    train(*sys.argv[1:])
