"""One GPT in four training loops, in turns: ours bare, BabyGPT under Lightning, transformers' Trainer, nanoGPT's.

`uv run python Module-4/race/trainers.py laptop --nanogpt CHECKOUT --record docs/results/trainers_race.json` prints
tokens/s, what each is over the others, and the bytes at the peak. On a GPU the larger sizes too; there
`course record --only trainers gpt2_race` measures the 124M, eager and compiled.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import torch
from llm_core.config import GPTConfig
from llm_core.costs.counts import flops_per_token, num_parameters
from llm_core.costs.speed import peak_flops
from llm_precision.meters import utilisation
from llm_precision.records.lightning import race, ways

from course import scale
from course.files import write_text

SIZES = {
    "laptop": (GPTConfig(65, 128, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=64), 12),
    "default": (GPTConfig(1_024, num_key_value_heads=2), 16),  # BabyGPT as a lesson makes it
    "124M": (
        GPTConfig(50_304, 768, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=1_024), 16,
    ),
}  # fmt: skip


def main() -> None:
    """Parse, race, print a line a loop, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT, for its loop")
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", type=Path, help="append what was measured to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config, rows = SIZES[options.size]
    size = (rows, config.max_position_embeddings)
    batches = [torch.randint(config.vocab_size, size, device=scale.device) for _ in range(4)]
    mixed = scale.device == "cuda"
    contenders = ways(config, batches, scale.device, mixed, options.steps, options.nanogpt)
    peak = peak_flops(torch.cuda.get_device_name()) if mixed else None
    flops = flops_per_token(config, config.max_position_embeddings) * batches[0].numel()
    found = []
    for row in race(contenders, batches[0].numel(), options.rounds, scale.device):
        row["mfu"] = utilisation(flops, row["seconds"], peak)
        found.append(row)
        over = ", ".join(f"{row[key]:.3f} x {key[11:]}" for key in row if key.startswith("speed_over"))
        print(
            f"{row['row']:<24}{row['tokens_per_second']:10,.0f} tokens/s {row['peak'] / 2**20:8.1f} MiB  {over}",
            flush=True,
        )
    if options.record:
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        head = {
            "size": options.size, "parameters": num_parameters(config), "rows": rows, "context": size[1],
            "precision": "bf16-mixed" if mixed else "32-true", "date": date.today().isoformat(),
            "hardware": scale.hardware, "torch": torch.__version__,
            "command": f"Module-4/race/trainers.py {options.size} --nanogpt CHECKOUT --record {options.record}",
        }  # fmt: skip
        write_text(options.record, json.dumps([*old, {**head, "loops": found}], indent=1) + "\n")


if __name__ == "__main__":
    main()
