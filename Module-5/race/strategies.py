"""Tokens a second and bytes of a rank, of each strategy, in turns: torch's own, ours by hand and under Lightning,
DeepSpeed's.

    uv run python Module-5/race/strategies.py                   # 2 ranks: on GPUs where there are any, else on the CPU
    uv run python Module-5/race/strategies.py --only fsdp2 fsdp2-lightning --rounds 15
    uv run python Module-5/race/strategies.py --record docs/results/strategies_race.json

A turn trains anew: a few steps that do not count, then some that do. A round is a turn of each (A B C A B C). Times are
those of the slowest rank, and their median is shown; "±" is half the distance of the quartiles, "x fsdp2" the median of
a round's seconds over those of torch's `fully_shard` in the same round, and "x CPU" the same of the seconds in which a
rank ran on a CPU: other work on the machine changes the first and hardly the second. All run in float32 on a CPU and
under autocast in bfloat16 on GPUs; "predicted" is what `llm_scale.budget` says.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from llm_core.costs.counts import CONFIGS
from llm_scale.records.contenders import CONTENDERS
from llm_scale.records.on_ranks import Entry, Turns, measure
from llm_scale.records.task import Task

from course import scale
from course.files import write_text
from course.terminal import ended_by_sigterm

SIZES = {"cpu": ("10M", 2, 256), "cuda": ("1B", 4, 2048)}  # model, rows and positions that are taken by default


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    if "missing" in row:
        return f"{row['row']:<18}{row['missing']}"
    over = row.get("seconds_over_fsdp2")
    told = f"{over['median']:6.3f} ({over['low']:.3f} to {over['high']:.3f})" if over else ""
    told += f"{row['processor_over_fsdp2']['median']:8.3f}" if over else ""
    mfu = f"{row['mfu']:5.1%}" if row["mfu"] else ""
    predicted = "" if row["predicted_peak"] is None else f"{row['predicted_peak'] / 2**20:,.1f}"
    return (
        f"{row['row']:<18}{row['tokens_per_second']:10,.0f}{50 * row['spread']:6.1f}%{row['peak'] / 2**20:11,.1f}"
        f"{predicted:>11}  {told:<33}{mfu}"
    ).rstrip()


def main() -> None:
    """Parse, race, print a line a contender, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes, or GPUs (2)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(CONTENDERS)}; all by default")
    parser.add_argument("--model", choices=CONFIGS, help="10M on a CPU, 1B on GPUs")
    parser.add_argument("--rows", type=int, help="of a rank's batch")
    parser.add_argument("--time", type=int, help="positions of a row")
    parser.add_argument("--checkpointing", action="store_true", help="keep each block's input only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2, help="steps of a turn that do not count (2)")
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn that do (5)")
    parser.add_argument("--record", type=Path, help="append what was measured to this JSON file")
    options = parser.parse_args()
    names, gpus = options.only or list(CONTENDERS), torch.cuda.device_count()
    for name in names:
        if name not in CONTENDERS:
            parser.error(f"--only {name}: no such contender; take of {', '.join(CONTENDERS)}")
    if options.ranks < 1 or 0 < gpus < options.ranks:
        most = f", at most the {gpus} GPUs that torch sees; CUDA_VISIBLE_DEVICES= hides them, for ranks on the CPU"
        parser.error(f"--ranks {options.ranks}: take 1 or more{most if gpus else ''}")
    device = "cuda" if gpus else "cpu"
    model, rows, time = SIZES[device]
    model = options.model or model
    time = options.time if options.time is not None else min(time, CONFIGS[model].max_position_embeddings)
    try:
        turns = Turns(options.rounds, options.warmup, options.steps)
        task = Task(
            model, rows if options.rows is None else options.rows, time, "bf16-mixed" if gpus else "fp32",
            options.checkpointing, device,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    entries = [Entry(name, name, task) for name in dict.fromkeys(names)]
    found = []
    print(
        f"{'':<18}{'tokens/s':>10}{'±':>7}{'peak MiB':>11}{'predicted':>11}  x fsdp2 (quartiles)       x CPU",
        flush=True,
    )
    with ended_by_sigterm():
        for row in measure(entries, options.ranks, turns, scale.memory if gpus else scale.memory // options.ranks):
            found.append(row)
            print(line(row), flush=True)
    if options.record:
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        size = " ".join(f"--{name} {value}" for name, value in asdict(turns).items())
        size += " --checkpointing" * options.checkpointing + (f" --only {' '.join(names)}" if options.only else "")
        head = {
            "ranks": options.ranks, **asdict(task), "turns": asdict(turns), "date": date.today().isoformat(),
            "hardware": scale.hardware, "torch": torch.__version__,
            "command": f"Module-5/race/strategies.py --ranks {options.ranks} --model {model} --rows {task.rows} "
            f"--time {time} {size} --record {options.record}",
        }  # fmt: skip
        write_text(options.record, json.dumps([*old, {**head, "contenders": found}], indent=1) + "\n")


if __name__ == "__main__":
    main()
