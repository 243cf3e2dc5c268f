"""What a trainer costs: one model, its batches and AdamW in a bare loop, under Lightning, in transformers' Trainer."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from llm_core.babygpt import BabyGPT
from llm_core.config import GPTConfig
from llm_core.costs.memory import peak_bytes
from llm_core.model import GPT
from torch import Tensor

from course.lightning_tools import quiet
from course.record import Setting
from llm_precision.levers import Levers, build_step
from llm_precision.meters import seconds_of, synchronize
from llm_precision.records.gpt2 import nanogpt_step
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


def ways(
    config: GPTConfig, batches: list[Tensor], device: str, mixed: bool, steps: int, checkout: str = ""
) -> dict[str, Callable[[], float]]:
    """By name, what trains anew for some steps, eager, and gives the seconds of one.

    Lightning logs and clips as it does for a user of BabyGPT.

    Args:
        config: sizes.
        batches: token ids on the device.
        device: "cpu" or "cuda".
        mixed: whether bfloat16 is autocast; else float32.
        steps: that count; three before them do not.
        checkout: nanoGPT's, for its loop; none by default.
    """
    precision, rows = "bf16-mixed" if mixed else "fp32", len(batches[0])
    texts: Any = [{"input_ids": row, "labels": row} for ids in batches for row in ids.cpu()]

    def timed(step: Callable[[], Any]) -> float:
        for _ in range(WARMUP):
            step()
        return seconds_of(step, device, steps)

    def lightning() -> float:
        loader: Any = torch.utils.data.DataLoader(texts * (1 + steps), rows)
        clock = Clock(device)
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=steps + WARMUP,
            precision="bf16-mixed" if mixed else "32-true", gradient_clip_val=1.0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[clock],
            limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(BabyGPT(GPT(config), warmup_steps=1), loader, loader)
        return clock.seconds / steps

    def nanogpt() -> float:
        longer = [torch.cat([ids, ids[:, :1]], dim=1) for ids in batches]  # it takes inputs and targets of one length
        return timed(nanogpt_step(checkout, config, longer, device, False, mixed)[0])

    found: dict[str, Callable[[], float]] = {
        "bare loop": lambda: timed(
            build_step(config, Levers(precision, optimizer="fused", fast=True), batches, device)
        ),
        "Lightning, BabyGPT": lightning,
        "transformers, Trainer": lambda: _transformers(device, mixed, config, texts, rows, steps),
    }
    if device == "cpu" and not mixed:  # what `llm_core.fast` gives
        found["bare loop, plain"] = lambda: timed(
            build_step(config, Levers(precision, optimizer="fused"), batches, device)
        )
    return {**found, "nanoGPT": nanogpt} if checkout else found


def race(contenders: dict[str, Callable[[], float]], tokens: int, rounds: int, device: str) -> Iterator[dict[str, Any]]:
    """Each contender's bytes at the peak, then the seconds of all in turns; tokens are those of a step."""
    quiet()
    peaks = {name: _peak(way, device) for name, way in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, way in contenders.items():
            times[name].append(way())
    for name, seconds in times.items():
        row = {"row": name, "seconds": statistics.median(seconds), "all_seconds": seconds, "peak": peaks[name],
               "tokens_per_second": tokens / statistics.median(seconds)}  # fmt: skip
        for other in ("bare loop", "bare loop, plain", "nanoGPT", "transformers, Trainer"):
            if other in times and other != name:  # above 1: faster than the other one
                key = "speed_over_" + {"bare loop, plain": "plain"}.get(other, other.split(",")[0].replace(" ", "_"))
                row[key] = statistics.median(o / s for o, s in zip(times[other], seconds, strict=True))
        yield row


def _peak(way: Callable[[], float], device: str) -> int:
    gc.collect()
    if device == "cpu":
        return peak_bytes(way)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return torch.cuda.max_memory_allocated() - before


def measure(setting: Setting) -> Iterator[dict[str, Any]]:
    """Seconds a step of 124M, eager, in turns; nanoGPT's too with `--option nanogpt=CHECKOUT`."""
    config, batches = shape(setting, 16)
    steps, rounds = setting.pick(full=(30, 3), toy=(2, 1))
    contenders = ways(config, batches, setting.device, True, steps, setting.options.get("nanogpt", ""))
    yield from race(contenders, batches[0].numel(), rounds, setting.device)


def _transformers(device: str, mixed: bool, config: Any, texts: Any, rows: int, steps: int) -> float:
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
                synchronize(device)
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
            output_dir=folder, per_device_train_batch_size=rows, max_steps=steps + WARMUP, bf16=mixed,
            max_grad_norm=1.0, use_cpu=device == "cpu", report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=texts, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return watch.seconds / steps
