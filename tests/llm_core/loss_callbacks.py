"""Callbacks for runs under test, given to `babygpt` by name; a small text; run as a module, a training job of ranks.

python -m torch.distributed.run --nproc-per-node=2 -m loss_callbacks OUT
"""

import json
import math
import os
import random
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from llm_core.babygpt import BabyGPT
from llm_core.model import GPTConfig

from course.lightning_tools import quiet

CONFIG = GPTConfig(50, hidden_size=32, num_hidden_layers=2, max_position_embeddings=16)


class Losses(pl.Callback):
    """Appends each step's loss, exactly, to a file."""

    def __init__(self, path: str) -> None:
        self.path, self.seen = Path(path), None

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.seen or math.isnan(pl_module.step_loss):
            return  # a batch of a step that is not whole yet
        self.seen = trainer.global_step
        line = {"step": trainer.global_step, "loss": pl_module.step_loss.hex()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class Killer(pl.Callback):
    """Ends the process at a step, in the hook that is named; by SIGKILL unless another signal is given."""

    def __init__(self, step: int, hook: str, number: int = 9) -> None:
        self.step, self.hook, self.number = step, hook, number

    def _at(self, trainer, hook):
        if hook == self.hook and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, *_):
        self._at(trainer, "batch_start")

    def on_before_optimizer_step(self, trainer, *_):
        self._at(trainer, "before_optimizer_step")

    def on_train_batch_end(self, trainer, *_):
        self._at(trainer, "batch_end")

    def on_validation_batch_end(self, trainer, *_):
        self._at(trainer, "validation")

    def on_save_checkpoint(self, trainer, *_):
        self._at(trainer, "save")


def own_text(folder):
    """60 short paragraphs in one file."""
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    paragraphs = {" ".join(draw.choice(words) for _ in range(draw.randint(3, 30))) for _ in range(60)}
    path = folder / "own.txt"
    path.write_text("\n\n".join(sorted(paragraphs)))
    return path


class Rows(torch.utils.data.Dataset):
    """Rows with very different numbers of targets."""

    def __init__(self, number=24):
        draw = torch.Generator().manual_seed(3)
        self.ids = torch.randint(0, 50, (number, 16), generator=draw)
        self.labels = self.ids.clone()
        for row in range(number):
            self.labels[row, : row * 5 % 15] = -100

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, place):
        return {"input_ids": self.ids[place], "labels": self.labels[place]}


def train(batch_size, accumulate=1, steps=3, seed=0, **options):
    """A BabyGPT trained on `Rows` in order; the module and its trainer."""
    quiet()
    pl.seed_everything(seed, verbose=False)
    module = options.pop("module", None) or BabyGPT(CONFIG, warmup_steps=1, learning_rate=1e-2)
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    # Rows dealt out in turn, unshuffled: ranks hold together in each step what one process does.
    sampler = torch.utils.data.DistributedSampler(Rows(), num_replicas=world, rank=rank, shuffle=False)
    loader = torch.utils.data.DataLoader(Rows(), batch_size=batch_size, sampler=sampler)
    trainer = pl.Trainer(**{
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "max_steps": steps, "accumulate_grad_batches": accumulate,
        "use_distributed_sampler": False, "log_every_n_steps": 1, **options,
    })  # fmt: skip
    trainer.fit(module, loader, loader)
    return module, trainer


if __name__ == "__main__":
    trained, finished = train(4, devices=int(os.environ["WORLD_SIZE"]), strategy="ddp")
    if finished.global_rank == 0:
        measured = {name: float(values) for name, values in finished.callback_metrics.items()}
        torch.save({"weights": trained.state_dict(), "metrics": measured}, sys.argv[1])
