"""BabyGPT as a user gets it, under Lightning, in a part of nanoGPT's whole time: no piece that only a race has.

    uv run python Module-3/race/babygpt.py PATH_OF_A_NANOGPT_CHECKOUT --share 6 --width 96

trains for a sixth of the time that nanoGPT's 2,000 steps take, measured beside it by steps of nanoGPT in between, and
prints the loss on the whole validation text. The seconds are those of the training loop, Lightning's part included.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from adjustable_gpt import CONTEXT, parameters_of
from baseline import STEPS, NanoGPT, evaluate, split
from llm_core.babygpt import BabyGPT
from llm_core.model import GPT, GPTConfig
from llm_data.text.corpora import load_corpus
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from course import scale
from course.files import write_text
from course.lightning_tools import quiet

EVERY, BESIDE = 20, 2  # after so many of our steps, so many of nanoGPT's


class Beside(pl.Callback):
    """Take steps of nanoGPT between ours, and count the seconds of each."""

    def __init__(self, nano: NanoGPT) -> None:
        self.nano, self.ours, self.theirs = nano, [], []  # type: ignore[var-annotated]
        self.begun = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % EVERY and trainer.global_step != trainer.max_steps:
            return
        self.ours.append(time.perf_counter() - self.begun)
        before = self.nano.seconds
        for _step in range(BESIDE):
            self.nano.step()
        self.theirs.append((self.nano.seconds - before) / BESIDE)
        self.begun = time.perf_counter()


class Evaluated:
    """What the race's `evaluate` asks of a contender."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(ids).logits.flatten(0, 1), targets.flatten())


def main() -> None:
    """Parse, measure the pace, train, print, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a nanoGPT checkout")
    parser.add_argument("--share", type=float, default=6, help="of nanoGPT's whole time, as a divisor (6)")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--rows", type=int, default=12, help="of a step")
    parser.add_argument("--rate", type=float, default=6e-3, help="learning rate at the end of the warm-up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, help="append what was measured to this JSON file")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    train, val, symbols = split("\n\n".join(load_corpus("shakespeare").documents()))
    sizes = GPTConfig(
        symbols, options.width, max_position_embeddings=CONTEXT, initializer_range=math.sqrt(2 / (5 * options.width))
    )
    rows: Any = [
        {"input_ids": row, "labels": row} for row in train[: len(train) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    ]

    def run(steps: int) -> tuple[BabyGPT, Beside]:
        pl.seed_everything(options.seed, verbose=False)
        nano = NanoGPT(options.checkout, train, symbols, options.seed)
        nano.step()
        ours = BabyGPT(GPT(sizes), learning_rate=options.rate, warmup_steps=max(10, steps // 20), min_lr_ratio=0.0)
        beside = Beside(nano)
        pl.Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, callbacks=[beside],
        ).fit(ours, DataLoader(rows, options.rows, shuffle=True, drop_last=True))  # fmt: skip
        return ours, beside

    _, pace = run(6 * EVERY)
    ours_ms, theirs_ms = (statistics.median(times[1:]) for times in (pace.ours, pace.theirs))
    steps = round(STEPS * theirs_ms / options.share / (ours_ms / EVERY))
    model, beside = run(steps)
    whole = STEPS * statistics.mean(beside.theirs)
    row = {
        "contender": "BabyGPT", "seed": options.seed, "width": options.width, "rows": options.rows,
        "rate": options.rate, "steps": steps, "parameters": parameters_of(model.model), "seconds": sum(beside.ours),
        "share": sum(beside.ours) / whole, "ms a step": 1e3 * sum(beside.ours) / steps,
        "nanoGPT ms a step": 1e3 * whole / STEPS, "val": evaluate(Evaluated(model.model), val),
    }  # fmt: skip
    print(
        "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        )
    )
    if options.record:
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        head = {
            "kind": "babygpt", "corpus": "shakespeare", "date": date.today().isoformat(), "threads": 1,
            "hardware": scale.hardware, "torch": torch.__version__,
            "command": "babygpt.py CHECKOUT " + " ".join(sys.argv[2:]),
        }  # fmt: skip
        write_text(options.record, json.dumps([*old, {**head, "rows": [row]}], indent=1) + "\n")


if __name__ == "__main__":
    main()
