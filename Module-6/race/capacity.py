"""How many random facts an adapter of each rank holds, and where it falls behind full fine-tuning.

`uv run python Module-6/race/capacity.py --record docs/results/lora_capacity.json` took a quarter of an hour on one core
that other work shared. Each rank's rate is the best of some on one seed. The base is a small GPT that has learned
Python functions.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from llm_core.small_model import Recipe, train_baby
from llm_peft.capacity import draw_facts, learn_facts
from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.inject import inject
from torch import nn

from course import scale
from course.files import write_text

BASE = Recipe(hidden_size=32, layers=2, steps=200, keep=())
ALPHA = 16 / math.sqrt(8)  # with alpha / sqrt(r), so that the first step is as large for each rank (lesson 2)


def ready(base: nn.Module, r: int, seed: int) -> Any:
    """A copy of the base with an adapter of rank r, or whole for 0. The last norm is trained in either: without it a
    frozen head bounds how sure the model can be."""
    torch.manual_seed(seed)
    model: Any = copy.deepcopy(base).train()
    if r:
        inject(model, LoRAConfig(r=r, lora_alpha=ALPHA, use_rslora=True))
        model.model.norm.weight.requires_grad_(True)
    return model


def curve(base: Any, r: int, numbers: Sequence[int], rates: Sequence[float], seeds: int, steps: int
          ) -> list[dict[str, Any]]:  # fmt: skip
    """Runs of one rank: the rate is chosen on the first seed, at the middle number of facts."""

    def run(number: int, rate: float, seed: int) -> dict[str, Any]:
        found = learn_facts(
            ready(base, r, seed), draw_facts(number, base.config.vocab_size, seed), rate, steps
        )  # fmt: skip
        return {"r": r, "facts": number, "rate": rate, "seed": seed, "steps": steps, **asdict(found)}

    tried = [run(numbers[len(numbers) // 2], rate, 0) for rate in rates]
    best = min(tried, key=lambda each: each["missing"])["rate"]
    return [run(number, best, seed) for seed in range(seeds) for number in numbers]


def main() -> None:
    """Parse, train, print a line a rank, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument(
        "--multiples", type=int, nargs="+", default=[64, 96, 128, 192], help="facts, for each of a rank"
    )
    parser.add_argument("--full", type=int, nargs="+", default=[512, 1024, 2048], help="facts")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.03, 0.04])
    parser.add_argument("--full-rates", type=float, nargs="+", default=[0.005, 0.01])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--other-steps", type=int, nargs="*", default=[100, 1000], help="for rank 2 alone")
    parser.add_argument("--record", type=Path, help="write what was measured to this JSON file")
    options = parser.parse_args()
    for name in ("seeds", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    torch.set_num_threads(1)
    base = train_baby(BASE).model
    jobs = [(r, [each * r for each in options.multiples], options.rates, options.seeds, options.steps)
            for r in options.ranks]  # fmt: skip
    jobs += [(2, [each * 2 for each in (*options.multiples, 4 * options.multiples[-1])], options.rates, 1, steps)
             for steps in options.other_steps]  # fmt: skip
    jobs += [(0, options.full, options.full_rates, 1, options.steps)]
    rows: list[dict[str, Any]] = []
    for r, numbers, rates, seeds, steps in jobs:
        found = curve(base, r, numbers, rates, seeds, steps)
        told = ", ".join(f"{each['facts']}: {each['missing']:.2f}" for each in found)
        print(f"rank {r or 'full'}, {steps} steps, rate {found[0]['rate']}: bits missing {told}", flush=True)
        rows += found
        if options.record:
            head = {
                "date": date.today().isoformat(), "hardware": scale.hardware, "torch": torch.__version__,
                "base": asdict(BASE), "command": f"Module-6/race/capacity.py --record {options.record}",
            }  # fmt: skip
            write_text(options.record, json.dumps([{**head, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    main()
