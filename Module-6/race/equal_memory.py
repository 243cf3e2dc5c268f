"""One budget of memory spent in several ways: a small model whole, a larger one with LoRA, the largest in four bits.

`uv run python Module-6/race/equal_memory.py --record docs/results/equal_memory.json` took some five minutes of one
core. Most of that trains the bases, on Python functions. Then each way learns prose, at the best of three rates on one
seed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from llm_core.costs.memory import memory_curve
from llm_core.forgetting import SILENT, batches, bits, fit, held_out
from llm_core.small_model import Baby, Recipe, train_baby
from llm_data.datamodule import LLMDataModule
from llm_peft import FineTune, LocalLoRA, LoRAConfig, budget, prepare
from llm_peft.command.plan import config_of

from course import scale
from course.files import write_text
from course.lightning_tools import quiet

TIME, CHUNK = 128, 64  # tokens of the one row of a batch, and those whose logits exist at a time


@dataclass(frozen=True)
class Way:
    """A method, on a base of some width, at some rank."""

    method: str
    width: int
    r: int = 8

    @property
    def settings(self) -> FineTune:
        """With checkpointing and our own layers; the scale keeps the first step alike for each rank (lesson 2)."""
        lora = LoRAConfig(r=self.r, lora_alpha=16 / 8**0.5, use_rslora=True)
        return FineTune(self.method, lora, dtype="float32", gradient_checkpointing=True, library="ours")


# The first four need at most 4.6 MB; the last is what full fine-tuning of the middle model would need.
WAYS = (Way("full", 56), Way("lora", 96), Way("qlora", 144), Way("qlora", 96, 20), Way("full", 96))
RATES = {"full": (1e-3, 2e-3, 4e-3), "lora": (4e-3, 8e-3, 16e-3), "qlora": (4e-3, 8e-3, 16e-3)}


def run(way: Way, base: Baby, texts: dict[str, Any], data: Any, rate: float, steps: int, seed: int) -> dict[str, Any]:
    """One training: bits per byte of both texts at its end, seconds a step, bytes at the peak."""
    pl.seed_everything(seed, verbose=False)
    prepared = prepare(str(base.folder), way.settings)
    before = {name: bits(prepared.model, text) for name, text in texts.items()}
    module = LocalLoRA(prepared, way.settings, rate, warmup_steps=steps // 10, loss_chunk=CHUNK)
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", devices=1, limit_val_batches=0, gradient_clip_val=1.0,
                         **SILENT)  # fmt: skip
    rows = batches(data, 1, seed=seed)
    begin = time.process_time()
    fit(trainer, module, rows)
    seconds = (time.process_time() - begin) / steps
    after = {name: bits(module.model, text) for name, text in texts.items()}
    gc.collect()
    trained = [each for each in module.model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    batch = next(iter(rows))

    def step() -> None:
        total, targets = module.loss(batch)
        (total / targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    predicted = budget(config_of(str(base.folder)), way.settings, 1, TIME, CHUNK)
    return {
        **asdict(way), "rate": rate, "seed": seed, "before": before, "after": after, "cpu_seconds_a_step": seconds,
        "parameters": predicted.parameters, "trained_parameters": predicted.trained_parameters,
        "predicted_peak": predicted.bytes, "peak": predicted.held + max(memory_curve(step).held),
    }  # fmt: skip


def main() -> None:
    """Parse, train, print a line a way, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--base-steps", type=int, default=800, help="of each base's own training")
    parser.add_argument("--rates", type=int, default=3, help="how many of the three to try, from the lowest")
    parser.add_argument("--record", type=Path, help="write what was measured to this JSON file")
    options = parser.parse_args()
    for name in ("seeds", "steps", "rates"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    quiet()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        # The middle one is the base of the lessons, which keeps more of its steps and is in the cache already.
        keep = Recipe().keep if way.width == Recipe().hidden_size and options.base_steps == Recipe().steps else ()
        base = train_baby(Recipe(hidden_size=way.width, steps=options.base_steps, keep=keep))
        data = LLMDataModule("python-docstrings", base.data.tokenizer, context=TIME, progress=False)
        data.prepare_data()
        data.setup()
        texts = {"prose": held_out(data, 24), "functions": held_out(base.data, 24)}
        tried = [run(way, base, texts, data, rate, options.steps, 0) for rate in RATES[way.method][: options.rates]]
        best = min(tried, key=lambda each: each["after"]["prose"])
        found = [best, *(run(way, base, texts, data, best["rate"], options.steps, seed)
                         for seed in range(1, options.seeds))]  # fmt: skip
        prose = statistics.mean(each["after"]["prose"] for each in found)
        print(f"{way.method:<5} {way.width} wide, r={way.r}: {found[0]['peak'] / 1e6:.2f} MB, predicted "
              f"{found[0]['predicted_peak'] / 1e6:.2f}; {found[0]['before']['prose']:.3f} -> {prose:.3f} bits/byte "
              f"at {best['rate']}; {found[0]['cpu_seconds_a_step'] * 1e3:.0f} ms a step", flush=True)  # fmt: skip
        rows += found
        if options.record:
            head = {
                "date": date.today().isoformat(), "hardware": scale.hardware, "torch": torch.__version__,
                "steps": options.steps, "base_steps": options.base_steps,
                "command": f"Module-6/race/equal_memory.py --record {options.record}",
            }  # fmt: skip
            write_text(options.record, json.dumps([{**head, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    main()
