"""The grid of small models that Module 4's lesson 5 fits a scaling law to, larger than a lesson has time for.

`uv run python Module-4/race/scaling_grid.py --record docs/results/scaling_grid.json` trains 27 models twice, from two
seeds: some twenty minutes on one core. Each run is recorded when it is there, and a second call goes on.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
from llm_precision.laws.grid import GRID, tokens_for, train

from course import scale
from course.files import write_text

CORPUS = "python-functions"
COMMAND = "Module-4/race/scaling_grid.py --record docs/results/scaling_grid.json"


def main() -> None:
    """Parse, train what is missing, print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="a JSON file to add to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    there = options.record is not None and options.record.is_file()
    empty: dict[str, Any] = {"corpus": CORPUS, "rows": []}
    record = json.loads(options.record.read_text("utf-8")) if there else empty
    known = {(row["budget"], row["width"], row["seed"]) for row in record["rows"]}
    for budget, widths in GRID.items():
        for width in widths:
            for seed in options.seeds:
                if (budget, width, seed) in known:
                    continue
                run = train(width, tokens_for(width, budget), seed, CORPUS)
                print(f"{budget:.3g} FLOPs, width {width}, seed {seed}: {run.loss:.4f}", flush=True)
                record["rows"].append({"budget": budget, "width": width, "seed": seed, **run._asdict()})
                record |= {"date": date.today().isoformat(), "hardware": scale.hardware, "torch": torch.__version__}
                record["command"] = COMMAND
                if options.record is not None:
                    write_text(options.record, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
