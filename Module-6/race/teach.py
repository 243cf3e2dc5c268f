"""One task, three ways: `smollm2-135m` taught to describe functions as JSON, whole, with LoRA and with QLoRA.

`uv run python Module-6/race/teach.py --record docs/results/teach.json` took three quarters of an hour on two cores that
other work shared. For each way and seed: the share of right answers to questions that it has not seen, after some
steps; what it forgot, in bits per byte of other text; seconds, bytes at the peak, predicted and measured; and the size
of what is kept.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from llm_core.costs.memory import memory_curve
from llm_core.generate import Sampling, generate, stop_ids
from llm_core.store.registry import load_model, save_model
from llm_peft import ChatDataModule, FineTune, LocalLoRA, LoRAConfig, budget, merged, prepare
from llm_peft.chat.template import prompt_ids
from llm_peft.local_lora import fit
from llm_peft.lora.files import write_adapter
from llm_peft.prepare import trained_state
from llm_peft.tasks.other_text import OtherText, other_texts
from llm_peft.tasks.signatures import Score, Signature, score, signatures, write_examples
from torch import nn
from transformers import AutoConfig

from course import scale
from course.files import write_text
from course.lightning_tools import quiet

WAYS = {"full": 1e-4, "lora": 1e-3, "qlora": 1e-3}  # and the learning rate of each
LORA = LoRAConfig(r=16, lora_alpha=32)
CONTEXT, TRAINED = 256, 400  # tokens of a row, and examples to train on


class Watch(pl.Callback):
    """Looks at the model after some steps."""

    def __init__(self, steps: Sequence[int], look: Any) -> None:
        self.steps, self.look = steps, look
        self.losses: list[float] = []
        self.points: list[dict[str, Any]] = []
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._clock = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._clock)
        self.losses.append(pl_module.step_loss)
        if trainer.global_step in self.steps:
            self.points.append({"step": trainer.global_step, **self.look(pl_module.model)})


def plain_gpt(model: nn.Module, tokenizer: Any, adapted: bool) -> nn.Module:
    """The model as one of ours without an adapter, which writes many answers at once."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(merged(model) if adapted else model, tokenizer, folder)
        return load_model(folder)[0]


def write_answers(model: Any, tokenizer: Any, asked: Sequence[Signature]) -> list[tuple[str, bool]]:
    """The likeliest answers, all questions at once, and whether each ended."""
    ends = tuple(sorted({*stop_ids(model), int(tokenizer.eos_token_id)}))
    prompts = [prompt_ids(each.question, tokenizer) for each in asked]
    rows = generate(model, prompts, Sampling(max_new_tokens=60, temperature=0.0, stop_ids=ends), ends[0])
    return [(str(tokenizer.decode(row, skip_special_tokens=True)).strip(), row[-1] in ends) for row in rows]


def looked_at(model: nn.Module, tokenizer: Any, adapted: bool, asked: Sequence[Signature], texts: Sequence[OtherText]
              ) -> dict[str, Any]:  # fmt: skip
    """The score of the answers, and bits per byte of other texts."""
    mode = model.training
    plain = plain_gpt(model.eval(), tokenizer, adapted)
    found: Score = score(write_answers(plain, tokenizer, asked), asked)
    model.train(mode)
    return {**asdict(found), "error": found.error, "bits_per_byte": {each.name: each.bits(plain) for each in texts}}


def teach(way: str, seed: int, steps: Sequence[int], asked: Sequence[Signature], base: str) -> dict[str, Any]:
    """One run."""
    settings = FineTune(method=way, lora=LORA, dtype="float32", library="ours")
    pl.seed_everything(seed, verbose=False)
    prepared = prepare(base, settings)
    texts = other_texts(prepared.tokenizer)
    body: Any = prepared.model
    config = AutoConfig.for_model(**body.config.to_dict())
    predicted = budget(config, settings, 1, CONTEXT)
    module = LocalLoRA(prepared, settings, learning_rate=WAYS[way], warmup_steps=max(steps) // 8)
    with tempfile.TemporaryDirectory() as folder:
        chosen = [each for each in signatures(len(asked) + 2_000) if each not in set(asked)][seed * TRAINED :][:TRAINED]
        write_examples(Path(folder) / "train.jsonl", chosen)
        data = ChatDataModule(str(Path(folder) / "train.jsonl"), context=CONTEXT, batch_size=1, seed=seed)
        watch = Watch(steps, lambda model: looked_at(model, prepared.tokenizer, way != "full", asked, texts))
        fit(module, data, max_steps=max(steps), accelerator="cpu", limit_val_batches=0, callbacks=[watch])
        state = trained_state(module.model)
        write_adapter(folder, settings.lora, state)
        kept = (Path(folder) / "adapter_model.safetensors").stat().st_size
    gc.collect()
    batch = next(iter(data.train_dataloader()))
    optimizer = torch.optim.AdamW(
        [each for each in module.model.parameters() if each.requires_grad], lr=0.0, fused=True
    )

    def step() -> None:
        total, targets = module.loss(batch)
        (total / targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    peak = predicted.held + max(memory_curve(step).held)
    return {
        "row": way, "seed": seed, "learning_rate": WAYS[way], "points": watch.points, "losses": watch.losses,
        "seconds_a_step": statistics.median(watch.seconds), "predicted_peak": predicted.bytes, "peak": peak,
        "trained_parameters": predicted.trained_parameters, "kept_bytes": kept,
    }  # fmt: skip


def main() -> None:
    """Parse, teach, print a line a run, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16], help="after which to look")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--record", type=Path, help="write what was measured to this JSON file")
    options = parser.parse_args()
    for name in ("seeds", "questions"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    quiet()
    torch.set_num_threads(1)
    asked = signatures(options.questions)
    model, tokenizer = load_model(options.base, transformers=True)
    before = looked_at(model, tokenizer, False, asked, other_texts(tokenizer))
    print(f"before: {before['right']:.0%} right, {before['ended']:.0%} ended", flush=True)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for way in options.ways:
            row = teach(way, seed, options.steps, asked, options.base)
            curve = ", ".join(f"{each['step']}: {each['right']:.0%}" for each in row["points"])
            print(f"{way:<6} seed {seed}  right after {curve}; {row['seconds_a_step']:.2f} s a step, "
                  f"{row['peak'] / 1e9:.2f} GB, predicted {row['predicted_peak'] / 1e9:.2f}", flush=True)  # fmt: skip
            rows.append(row)
            if options.record:
                head = {
                    "date": date.today().isoformat(), "hardware": scale.hardware, "torch": torch.__version__,
                    "base": options.base, "questions": options.questions, "context": CONTEXT, "examples": TRAINED,
                    "lora": asdict(LORA), "before": before,
                    "command": f"Module-6/race/teach.py --record {options.record}",
                }  # fmt: skip
                write_text(options.record, json.dumps([{**head, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    main()
