"""Our recipes against nanoGPT's laptop recipe, on tiny Shakespeare by characters.

    uv run python Module-3/race/nanogpt.py PATH_OF_A_NANOGPT_CHECKOUT     # the race, some minutes
    uv run python Module-3/race/nanogpt.py PATH --ladder                  # one change at a time, in 1/8 of its time
    uv run python Module-3/race/nanogpt.py PATH --trainer                 # tokens/s through Lightning, equal shape

nanoGPT's model and optimiser are those of the checkout, its loop is that of its train.py (4 layers, 4 heads, 128 wide,
context 64, batch 12, AdamW 1e-3 to 1e-4 with 100 steps of warm-up, 2,000 steps). All contenders train in one process,
in turns of a few steps, with the same number of threads: whatever else the machine does falls on all of them.
Seconds are those of training steps; evaluation, start-up and compilation are shown beside them. The loss is the mean
over the whole validation text, the last tenth, in windows of 64 (1,742 of Shakespeare's).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from adjustable_gpt import CONTEXT, Recipe, Training, parameters_of
from baseline import STEPS, NanoGPT, evaluate, split
from llm_data.text.corpora import load_corpus
from torch import Tensor

from course import scale

TARGET = 1.898
SHORT = Recipe(
    width=96, rms=False, mlp="relu2", previous=3, qk_norm=True, learning_rate=4e-3, floor=0.0, linear=True, epochs=True,
    wide_init=True, muon=0.02,
)  # fmt: skip
LONG = replace(SHORT, width=128, batch=16, qk_norm=False, muon_decay=0.2)
# Steps that fill an eighth, and the whole, of nanoGPT's time; compiled, there are more of them.
RACE = {
    False: {"ours, short": (SHORT, 250), "ours, long": (LONG, 1170)},
    True: {"ours, short": (SHORT, 310), "ours, long": (LONG, 1300)},
}

LADDER: list[tuple[str, dict[str, Any]]] = [
    ("learned positions to rotary", {}),
    ("LayerNorm and GELU to RMSNorm and SwiGLU", {"rms": True, "mlp": "swiglu"}),
    ("learning rate 1e-3 to 4e-3", {"learning_rate": 4e-3}),
    ("cosine to a tenth, to a line to 0", {"linear": True, "floor": 0.0}),
    ("random places to epochs", {"epochs": True}),
    ("first weights of 0.02 to sqrt(2 / 5C)", {"wide_init": True}),
    ("AdamW to Muon on the matrices", {"muon": 0.02}),
    ("embeddings of the 3 characters before", {"previous": 3}),
    ("RMSNorm and SwiGLU to LayerNorm and ReLU squared", {"rms": False, "mlp": "relu2"}),
    ("128 wide to 96", {"width": 96}),
    ("queries and keys normalised", {"qk_norm": True}),
    ("compiled", {"compiled": True}),
]


def warm_up(training: Training, text: Tensor, vocab_size: int) -> float:
    """Take steps with a copy, so that no contender's first step pays for set-up; seconds."""
    start = time.perf_counter()
    other = Training(training.recipe, text, vocab_size, 100, seed=99)
    for _ in range(3):
        other.step()
    if training.recipe.compiled:
        training.run = torch.compile(training.model)
        training.run(*Training(training.recipe, text, vocab_size, 100, seed=99).batches()).backward()
        training.model.zero_grad()
    return time.perf_counter() - start


def race(checkout: Path, text: str, seed: int, compiled: bool) -> list[dict[str, Any]]:
    """All contenders from beginning to end, in turns; a row for each."""
    train, val, symbols = split(text)
    nano = NanoGPT(checkout, train, symbols, seed)
    contenders: dict[str, Any] = {"nanoGPT": nano}
    starts = {"nanoGPT": 0.0}
    for name, (recipe, steps) in RACE[compiled].items():
        training = Training(replace(recipe, compiled=compiled), train, symbols, steps, seed)
        starts[name] = warm_up(training, train, symbols)
        contenders[name] = training
    reached: dict[str, float] = {}
    evaluating = 0.0
    for turn in range(1, 101):
        for name, contender in contenders.items():
            while contender.done < contender.steps * turn // 100:
                contender.step()
            if name not in reached and (turn % 10 == 0 or turn > 94):
                start = time.perf_counter()
                if evaluate(contender, val) <= TARGET:
                    reached[name] = contender.seconds
                evaluating += time.perf_counter() - start
    rows = []
    for name, contender in contenders.items():
        rows.append({
            "contender": name, "seed": seed, "parameters": parameters_of(contender.model), "steps": contender.steps,
            "seconds": contender.seconds, "share": contender.seconds / nano.seconds,
            "seconds to 1.898": reached.get(name), "val": evaluate(contender, val),
            "tokens/s": contender.steps * contender.recipe.batch * CONTEXT / contender.seconds,
            "start-up s": starts[name], "evaluation s": evaluating, "memory MB": memory_of(checkout, name, compiled),
        })  # fmt: skip
    return rows


def memory_of(checkout: Path, name: str, compiled: bool) -> float:
    """Peak memory of a contender's steps above that of its imports and the text, in MB, in a process of its own."""
    command = [sys.executable, __file__, str(checkout), "--alone", name, *(["--compile"] if compiled else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def alone(checkout: Path, text: str, name: str, compiled: bool) -> float:
    """What `memory_of` runs: ten steps."""
    train, _, symbols = split(text)
    process = psutil.Process()
    before = process.memory_info().rss
    peak = before
    contender: Any
    if name == "nanoGPT":
        contender = NanoGPT(checkout, train, symbols, 0)
    else:
        contender = Training(replace(RACE[compiled][name][0], compiled=compiled), train, symbols, 100, 0)
    for _ in range(10):
        contender.step()
        peak = max(peak, process.memory_info().rss)
    return (peak - before) / 1e6


def ladder(checkout: Path, text: str, seed: int, part: float = 1 / 8) -> list[dict[str, Any]]:
    """Each rung trained for the same part of nanoGPT's whole time, as measured beside it."""
    train, val, symbols = split(text)
    rows: list[dict[str, Any]] = []
    recipe = Recipe(rotary=False, rms=False, mlp="gelu")
    for name, change in [("nanoGPT's model and recipe, in that time", None), *LADDER]:
        clock = NanoGPT(checkout, train, symbols, seed)
        if change is None:
            make: Callable[[int], Any] = lambda steps: NanoGPT(checkout, train, symbols, seed)  # noqa: E731
            start = 0.0
        else:
            recipe = replace(recipe, rotary=True, **change)
            make = partial(Training, recipe, train, symbols, seed=seed)
        trial = make(100)
        start = warm_up(trial, train, symbols) if change is not None else 0.0
        for _ in range(40):  # the first steps of both are dropped
            clock.step()
            trial.step()
            if clock.done == 4:
                clock.seconds = trial.seconds = 0.0
        steps = round(part * STEPS * clock.seconds / trial.seconds)
        contender = make(steps)
        contender.steps = steps
        if change is not None and recipe.compiled:
            warm_up(contender, train, symbols)
        clock.seconds, clock.done = 0.0, 0
        for _ in range(steps):
            contender.step()
            if contender.done % 10 == 0:
                clock.step()
        share = contender.seconds / (STEPS * clock.seconds / clock.done)
        rows.append({
            "change": name, "seed": seed, "val": evaluate(contender, val), "share": share, "steps": steps,
            "ms a step": 1e3 * contender.seconds / steps, "parameters": parameters_of(contender.model),
            "start-up s": start,
        })  # fmt: skip
        pace = f"{steps:4} steps of {rows[-1]['ms a step']:5.1f} ms"
        print(f"{rows[-1]['val']:.3f}  in {share:.3f} of its time, {pace}  {name}", flush=True)
    return rows


def trainer(checkout: Path, text: str, compiled: bool) -> list[dict[str, Any]]:
    """BabyGPT under Lightning's Trainer, and nanoGPT's loop, twenty steps in turns; the same sizes and batches."""
    import pytorch_lightning as pl
    from llm_core.babygpt import BabyGPT
    from llm_core.model import GPT, GPTConfig

    from course.lightning_tools import quiet

    quiet()
    train, _, symbols = split(text)
    nano = NanoGPT(checkout, train, symbols, 0)
    # 344: as many parameters, but for half a percent.
    sizes = GPTConfig(symbols, 128, 344, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=CONTEXT)
    model = GPT(sizes)
    if compiled:
        model.compile()
    rows = (train[: len(train) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    examples: Any = [{"input_ids": row, "labels": row} for row in rows]  # a list serves as a dataset
    loader: Any = torch.utils.data.DataLoader(examples, batch_size=12, shuffle=True, drop_last=True)
    times: dict[str, list[float]] = {"nanoGPT": [], "ours": []}

    class Turns(pl.Callback):
        begun = 0.0

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step % 20:
                return
            if trainer.global_step > 40:
                times["ours"].append((time.perf_counter() - self.begun) / 20)
            before = nano.seconds
            for _step in range(20):
                nano.step()
            if trainer.global_step > 40:
                times["nanoGPT"].append((nano.seconds - before) / 20)
            self.begun = time.perf_counter()

    pl.Trainer(
        max_steps=320, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=1.0, callbacks=[Turns()],
    ).fit(BabyGPT(model), loader)  # fmt: skip
    ratio = statistics.median(a / b for a, b in zip(times["nanoGPT"], times["ours"], strict=True))
    return [
        {"contender": name, "parameters": parameters_of(each), "ms a step": 1e3 * statistics.median(times[name]),
         "tokens/s": 12 * CONTEXT / statistics.median(times[name]), "times nanoGPT's tokens/s": factor}
        for name, each, factor in (("nanoGPT", nano.model, 1.0), ("ours", model, ratio))
    ]  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """A table."""
    names = list(rows[0])
    print("  ".join(f"{name:>18}" for name in names))
    for row in rows:
        cells = (row[name] for name in names)
        print("  ".join(f"{cell:18,.4g}" if isinstance(cell, float) else f"{cell!s:>18}" for cell in cells))


def main() -> None:
    """Parse, race, print, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a nanoGPT checkout")
    parser.add_argument("--ladder", action="store_true", help="one change at a time")
    parser.add_argument("--trainer", action="store_true", help="tokens/s through Lightning")
    parser.add_argument("--threads", type=int, default=2, help="of each contender (2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one race for each (1)")
    parser.add_argument("--compile", action="store_true", help="our contenders through torch.compile")
    parser.add_argument("--alone", choices=["nanoGPT", *RACE[False]], help="print the memory of one contender's steps")
    parser.add_argument("--record", type=Path, help="append what was measured to this JSON file")
    parser.add_argument("--corpus", default="shakespeare", help="the text; the recipes were tuned on the default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text = "\n\n".join(load_corpus(options.corpus).documents())
    if options.alone:
        print(alone(options.checkout, text, options.alone, options.compile))
        return
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        if options.ladder:
            rows += ladder(options.checkout, text, seed)
        elif options.trainer:
            rows += trainer(options.checkout, text, options.compile)
        else:
            rows += race(options.checkout, text, seed, options.compile)
    show(rows)
    if options.record:
        kind = "ladder" if options.ladder else "trainer" if options.trainer else "race"
        record = {
            "kind": kind, "corpus": options.corpus, "date": date.today().isoformat(), "threads": options.threads,
            "compiled": options.compile,
            "hardware": scale.hardware, "torch": torch.__version__,
            "command": "nanogpt.py CHECKOUT " + " ".join(sys.argv[2:]), "recipes": {
                name: {**asdict(recipe), "steps": steps} for name, (recipe, steps) in RACE[options.compile].items()
            }, "rows": rows,
        }  # fmt: skip
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        options.record.write_text(json.dumps([*old, record], indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
