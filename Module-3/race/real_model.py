"""The real model, fine-tuned for longer than a lesson may take: what it writes and knows before and after.

`COURSE_DATA=DIR uv run python Module-3/race/real_model.py shakespeare --record docs/results/real_model.json` trains the
last blocks of smollm2-135m on a corpus of the course for some ten minutes on one core, with and without replay, and
adds its row to the file. `python-functions` needs no COURSE_DATA.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from llm_core.forgetting import HeldOut, batches, bits, fine_tune, held_out
from llm_core.generate import Sampling, sample_texts
from llm_core.store.registry import load_model
from llm_data.datamodule import LLMDataModule
from torch import nn

from course import scale
from course.files import write_text

NAME = "smollm2-135m"
OLD = "python-docstrings"  # English prose, which the model reads well
PROMPTS = {
    "shakespeare": ("ROMEO:\n", "KING HENRY:\n", "The capital of France is"),
    "python-functions": ("def get(self,", "def read_lines(path):\n", "The capital of France is"),
}


def text_of(corpus: str, tokenizer: Any) -> LLMDataModule:
    """A corpus in rows of 128 tokens of the model's own tokenizer."""
    data = LLMDataModule(corpus, tokenizer, context=128, progress=False)
    data.prepare_data()
    data.setup()
    return data


def last_blocks(model: nn.Module, number: int) -> nn.Module:
    """A copy of which only the last blocks and the last norm are trained."""
    body: Any = copy.deepcopy(model)
    body.requires_grad_(False)
    for part in (*body.model.layers[-number:], body.model.norm):
        part.requires_grad_(True)
    trained: nn.Module = body
    return trained


def run(corpus: str, old_rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run: losses on both texts at several steps, and texts before and after."""
    model, tokenizer = load_model(NAME)
    assert tokenizer is not None
    tokenizer.pad_token = "<|endoftext|>"  # it was published with the token for the end as padding
    new, old = text_of(corpus, tokenizer), text_of(OLD, tokenizer)
    texts: dict[str, HeldOut] = {"new": held_out(new, rows=6), "old": held_out(old, rows=6)}
    train = batches(new, options.rows, 0, old if old_rows else None, old_rows)
    sampling = Sampling(60, temperature=0.7, top_p=0.9, seed=1)
    prompts = PROMPTS[corpus]
    before = sample_texts(model, tokenizer, prompts, sampling)
    start = {"step": 0, **{name: bits(model, text) for name, text in texts.items()}}
    began = time.perf_counter()
    measure_at = range(options.steps // 5, options.steps + 1, options.steps // 5)
    tuned, points = fine_tune(
        last_blocks(model, options.blocks), train, texts, steps=options.steps,
        learning_rate=options.learning_rate, measure_at=measure_at,
    )  # fmt: skip
    after = sample_texts(tuned, tokenizer, prompts, sampling)
    return {
        "model": NAME, "corpus": corpus, "old": OLD, "steps": options.steps, "rows": options.rows, "old_rows": old_rows,
        "tokens_a_row": 128, "blocks": options.blocks, "learning_rate": options.learning_rate,
        "seconds": round(time.perf_counter() - began), "bits_per_byte": [start, *points],
        "texts": [
            {"prompt": prompt, "before": one, "after": other}
            for prompt, one, other in zip(prompts, before, after, strict=True)
        ],
        "date": date.today().isoformat(), "hardware": scale.hardware, "torch": torch.__version__,
        "command": f"Module-3/race/real_model.py {corpus} --record docs/results/real_model.json",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", choices=PROMPTS)
    parser.add_argument("--record", type=Path, help="a JSON file to add to")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    options = parser.parse_args()
    for old_rows in (0, 1):
        row = run(options.corpus, old_rows, options)
        print(json.dumps(row, indent=1, ensure_ascii=False), flush=True)
        if options.record is not None:
            rows = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
            same = (row["corpus"], row["old_rows"])
            rows = [each for each in rows if (each["corpus"], each["old_rows"]) != same] + [row]
            write_text(options.record, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
