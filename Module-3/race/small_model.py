"""The small model's learning rate and first weights: each at three points or two, with seeds.

`uv run python Module-3/race/small_model.py --record docs/results/small_model.json` trains it anew for each row, a
minute or two each on one core; a row is written as soon as it is there, and rows that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from llm_core.small_model import Recipe, train_baby

from course import scale
from course.files import write_text

COMMAND = "Module-3/race/small_model.py --record docs/results/small_model.json"


def recipes(seeds: list[int]) -> Iterator[tuple[str, Recipe]]:
    """What is run, most wanted first: the default, each rate and each first weight beside it."""
    default = Recipe(keep=())
    for seed in seeds:
        for std in (None, 0.02):
            yield "first weights", replace(default, init_std=std, seed=seed)
        for rate in (2.5e-3, 1e-2):
            yield "learning rate", replace(default, learning_rate=rate, seed=seed)


def row_of(kind: str, recipe: Recipe) -> dict[str, Any]:
    """One run: what was changed, and its losses."""
    baby = train_baby(recipe)
    tokens = recipe.batch_size * recipe.context
    return {
        "kind": kind, "learning_rate": recipe.learning_rate, "seed": recipe.seed,
        "init_std": recipe.initializer_range, "first_loss": baby.losses[0],
        "train_loss": sum(baby.losses[-50:]) / 50,
        "val_loss": {step * tokens: loss for step, loss in baby.val_losses.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, help="a JSON file to add to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    there = options.record is not None and options.record.is_file()
    record = json.loads(options.record.read_text("utf-8")) if there else {"rows": []}
    known = {(row["learning_rate"], round(row["init_std"], 4), row["seed"]) for row in record["rows"]}
    for kind, recipe in recipes(options.seeds):
        if (recipe.learning_rate, round(recipe.initializer_range, 4), recipe.seed) in known:
            continue
        row = row_of(kind, recipe)
        print(row, flush=True)
        record["rows"].append(row)
        record |= {"date": date.today().isoformat(), "hardware": scale.hardware, "torch": torch.__version__}
        record |= {"threads": torch.get_num_threads(), "command": COMMAND}
        if options.record is not None:
            write_text(options.record, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
