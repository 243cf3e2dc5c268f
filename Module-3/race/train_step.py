"""Tokens a second of a training step, for a model of lesson 5's ladder, under Lightning with `BabyGPT`.

    uv run python Module-3/race/train_step.py 1M                  # here, in seconds
    uv run python Module-3/race/train_step.py 1B --devices 2      # two GPUs
    uv run course record --only train_steps                       # the whole ladder on one GPU, into docs/results

On GPUs where there are any, else on processes of the CPU. Rows of random tokens, as long as the model's context: the
time of a step does not depend on what it reads. With several devices each holds the whole model (DDP). AdamW;
`bf16-true` on GPUs, the recipe of 8 bytes a parameter, with which the 7B's weights, gradients and moments take 54 GB.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import pytorch_lightning as pl
import torch
from llm_core.babygpt import BabyGPT
from llm_core.costs.counts import CONFIGS, flops_per_token, num_parameters
from llm_core.model import GPT

from course import scale
from course.lightning_tools import quiet


class Clock(pl.Callback):
    """Seconds from the end of one step to the end of the last."""

    def __init__(self, first: int) -> None:
        self.first, self.begun, self.ended = first, 0.0, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step in (self.first, trainer.max_steps):
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.begun, self.ended = self.begun or time.perf_counter(), time.perf_counter()


def measure(
    name: str, devices: int, rows: int, steps: int, precision: str, loss_chunk: int
) -> dict[str, Any] | None:  # fmt: skip
    """Train on random rows; the first quarter of the steps is not timed. None in the processes beside the first."""
    quiet()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # of a model measured before in this process
    config, gpu = CONFIGS[name], torch.cuda.is_available()
    context = config.max_position_embeddings
    ids = torch.randint(config.vocab_size, (steps * rows * devices, context))
    texts: Any = [{"input_ids": row, "labels": row} for row in ids]
    loader: Any = torch.utils.data.DataLoader(texts, rows)
    clock = Clock(max(steps // 4, 1))
    options: dict[str, Any] = {"precision": precision, "strategy": "ddp" if devices > 1 else "auto"}
    trainer = pl.Trainer(
        accelerator="gpu" if gpu else "cpu", devices=devices, max_steps=steps, gradient_clip_val=1.0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[clock],
        limit_val_batches=0, **options,
    )  # fmt: skip
    with trainer.init_module():  # on its device and in its precision, so that the CPU need not hold a 7B in float32
        model = GPT(config)
    trainer.fit(BabyGPT(model, warmup_steps=1, loss_chunk=loss_chunk), loader, loader)
    if not trainer.is_global_zero:
        return None
    rate = (steps - clock.first) * rows * devices * context / (clock.ended - clock.begun)
    return {
        "model": name, "parameters": num_parameters(config), "devices": devices, "rows": rows, "context": context,
        "steps": steps, "precision": precision, "loss_chunk": loss_chunk, "tokens_per_second": round(rate),
        "model_flops_per_second": rate * flops_per_token(config, context),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else None,
        "hardware": torch.cuda.get_device_name() if gpu else scale.hardware,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CONFIGS, help="a name of lesson 5's ladder")
    parser.add_argument("--devices", type=int, default=1, help="GPUs, or processes of the CPU (1)")
    parser.add_argument("--rows", type=int, default=2, help="of a batch on each device (2)")
    parser.add_argument("--steps", type=int, default=20, help="20; the first quarter is not timed")
    parser.add_argument("--precision", help="of Lightning's Trainer (bf16-true on a GPU, else 32-true)")
    parser.add_argument("--loss-chunk", type=int, default=0, help="tokens whose logits exist at a time; 0 for all")
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    if options.devices < 1 or 0 < gpus < options.devices:
        parser.error(f"--devices {options.devices}: take 1 or more, at most the {gpus} GPUs that torch sees")
    if options.steps < 2 or options.rows < 1:
        parser.error(f"--steps {options.steps} --rows {options.rows}: take at least 2 steps and 1 row")
    precision = options.precision or ("bf16-true" if gpus else "32-true")
    row = measure(options.model, options.devices, options.rows, options.steps, precision, options.loss_chunk)
    if row is None:
        return
    for name, value in row.items():
        print(f"{name:<24}{value:,.4g}" if isinstance(value, float) else f"{name:<24}{value}")


if __name__ == "__main__":
    main()
