"""Our LoRA and QLoRA beside peft's and bitsandbytes', the same model and adapter, in turns.

`uv run python Module-6/race/libraries.py --record docs/results/libraries_race.json` prints seconds a step, what ours is
over theirs, the bytes at the peak, and the largest difference of their losses.
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import date
from pathlib import Path
from typing import Any

import torch
from llm_core.costs.memory import memory_curve
from llm_peft.lora.config import LoRAConfig
from llm_peft.records.steps import contenders
from llm_peft.settings import FineTune
from llm_precision.meters import Seconds, interleaved
from transformers import LlamaConfig

from course import scale
from course.files import write_text

SIZES = {
    "1M": {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4},
    "27M": {"vocab_size": 8_192, "hidden_size": 512, "intermediate_size": 1_536, "num_hidden_layers": 8},
}


def race(size: str, method: str, rows: int, time: int, rounds: int, steps: int) -> dict[str, Any]:
    """Both libraries in turns; what each took, and how far their losses are apart."""
    config = LlamaConfig(**SIZES[size], num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=time)
    settings = FineTune(method=method, lora=LoRAConfig(r=16, lora_alpha=32), dtype="float32")
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (rows, time))
    found = contenders(config, settings, ("ours", "peft"), ids, "cpu")
    curves = {name: [step() for _ in range(steps)] for name, step in found.items()}
    peaks = {name: max(memory_curve(step).held) for name, step in found.items()}
    times = interleaved(found, rounds=rounds, warmup=1)
    ratios = [ours / theirs for ours, theirs in zip(times["ours"], times["peft"], strict=True)]
    return {
        "size": size, "method": method, "rows": rows, "time": time, "r": 16,
        "seconds": {name: statistics.median(values) for name, values in times.items()}, "all_seconds": times,
        "ours_over_peft": Seconds.of(ratios)._asdict(), "peak_beside_held": peaks,
        "losses": curves,
        "largest_difference": max(abs(a - b) for a, b in zip(curves["ours"], curves["peft"], strict=True)),
    }  # fmt: skip


def main() -> None:
    """Parse, race, print, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="27M")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--time", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="of the loss curve")
    parser.add_argument("--record", type=Path, help="append what was measured to this JSON file")
    options = parser.parse_args()
    for name in ("rows", "rounds", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    torch.set_num_threads(1)
    found = []
    for method in ("lora", "qlora"):
        row = race(options.size, method, options.rows, options.time, options.rounds, options.steps)
        ratio = row["ours_over_peft"]
        peaks = ", ".join(f"{name} {peak / 2**20:.1f} MiB" for name, peak in row["peak_beside_held"].items())
        print(
            f"{method:<6} ours {row['seconds']['ours']:.3f} s, peft {row['seconds']['peft']:.3f} s a step, ours over "
            f"peft {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}); beside what is held {peaks}; "
            f"losses within {row['largest_difference']:.1e}",
            flush=True,
        )
        found.append(row)
    if options.record:
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        head = {
            "date": date.today().isoformat(), "hardware": scale.hardware, "torch": torch.__version__,
            "command": f"Module-6/race/libraries.py --size {options.size} --record {options.record}",
        }  # fmt: skip
        write_text(options.record, json.dumps([*old, {**head, "rows": found}], indent=1) + "\n")


if __name__ == "__main__":
    main()
