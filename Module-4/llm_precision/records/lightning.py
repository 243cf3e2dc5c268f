"""What a trainer costs: one model, its batches and AdamW in a bare loop, under Lightning, in transformers' Trainer."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from llm_core.babygpt import BabyGPT
from llm_core.model import GPT

from course.lightning_tools import quiet
from course.record import Setting
from llm_precision.levers import Levers, build_step
from llm_precision.meters import seconds_of, synchronize
from llm_precision.records.ladder import shape

WARMUP = 3


class Clock(pl.Callback):
    """Seconds of the steps after the first few."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step in (WARMUP, trainer.max_steps):
            synchronize(self.device)
            self.seconds = time.perf_counter() - self.seconds


def measure(setting: Setting) -> Iterator[dict[str, Any]]:
    """Seconds a step, eager, in turns. Lightning logs and clips as it does for a user of BabyGPT."""
    quiet()
    config, batches = shape(setting, 16)
    rows = len(batches[0])
    steps, rounds = setting.pick(full=(30, 3), toy=(2, 1))
    bare = build_step(config, Levers("bf16-mixed", optimizer="fused"), batches, setting.device)
    texts: Any = [{"input_ids": row, "labels": row} for ids in batches for row in ids.cpu()]
    loader: Any = torch.utils.data.DataLoader(texts * (1 + steps), rows)

    def loop() -> float:
        for _ in range(WARMUP):
            bare()
        return seconds_of(bare, setting.device, steps)

    def lightning() -> float:
        clock = Clock(setting.device)
        trainer = pl.Trainer(
            accelerator="gpu" if setting.device == "cuda" else "cpu", devices=1, max_steps=steps + WARMUP,
            precision="bf16-mixed", gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[clock], limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(BabyGPT(GPT(config), warmup_steps=1), loader, loader)
        return clock.seconds / steps

    def trainer() -> float:
        return _transformers(setting, config, texts, rows, steps)

    ways: dict[str, Callable[[], float]] = {
        "bare loop": loop, "Lightning, BabyGPT": lightning, "transformers, Trainer": trainer
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(way())
    tokens = rows * config.max_position_embeddings
    for name, seconds in times.items():
        yield {
            "row": name, "rows": rows, "seconds": statistics.median(seconds), "all_seconds": seconds,
            "tokens_per_second": tokens / statistics.median(seconds),
            "of_the_bare_loop": statistics.median(s / b for s, b in zip(seconds, times["bare loop"], strict=True)),
        }  # fmt: skip


def _transformers(setting: Setting, config: Any, texts: Any, rows: int, steps: int) -> float:
    """Seconds a step of transformers' Trainer, with its Llama of the same sizes."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )  # fmt: skip

    class Watch(TrainerCallback):
        seconds = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (WARMUP, state.max_steps):
                synchronize(setting.device)
                self.seconds = time.perf_counter() - self.seconds

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads, max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=True, use_cache=False,
    ))  # fmt: skip
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=rows, max_steps=steps + WARMUP, bf16=True, max_grad_norm=1.0,
            use_cpu=setting.device == "cpu", report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=texts, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return watch.seconds / steps
