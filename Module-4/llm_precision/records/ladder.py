"""Lesson 3's ladder on this device: each lever alone, then one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from llm_core.config import GPTConfig
from llm_core.costs.counts import flops_per_token, num_parameters
from llm_core.costs.speed import peak_flops

from course.record import Setting
from llm_precision.benchmark import benchmark
from llm_precision.levers import Levers, variants

SHAPE = GPTConfig(
    50_304, 768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=1_024
)  # GPT-2's sizes: 124M
TOY = GPTConfig(
    256, 32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64
)  # fmt: skip

ALONE: list[dict[str, Any]] = [
    {"precision": "tf32"}, {"precision": "bf16-mixed"}, {"precision": "fp16-mixed"}, {"precision": "bf16-true"},
    {"attention": "naive"}, {"optimizer": "foreach"}, {"optimizer": "fused"}, {"checkpointing": True},
    {"loss_chunk": 4096}, {"accumulate": 2},
]  # fmt: skip
LADDER: list[dict[str, Any]] = [
    {"precision": "tf32"}, {"precision": "bf16-mixed"}, {"optimizer": "fused"}, {"compiled": True},
    {"attention": "cudnn"}, {"precision": "bf16-true"},
]  # fmt: skip


def shape(setting: Setting, rows: int) -> tuple[GPTConfig, list[torch.Tensor]]:
    """The model's sizes, and batches of random tokens: a step's time doesn't depend on them. Two rows at toy size."""
    config = setting.pick(full=SHAPE, toy=TOY)
    torch.manual_seed(1)
    size = (setting.pick(full=rows, toy=2), config.max_position_embeddings)
    return config, [torch.randint(config.vocab_size, size, device=setting.device) for _ in range(4)]


def _measure(setting: Setting, rows: int, levers: list[Levers]) -> Iterator[dict[str, Any]]:
    config, batches = shape(setting, rows)
    flops = flops_per_token(config, config.max_position_embeddings)
    peak = peak_flops(torch.cuda.get_device_name()) if setting.device == "cuda" else None
    told = {"parameters": num_parameters(config), "rows": len(batches[0]), "context": config.max_position_embeddings}
    rounds = setting.pick(full=5, toy=1)
    for row in benchmark(variants(config, levers, batches, setting.device, flops), setting.device, rounds, 2, peak):
        yield {"row": row.name, **told, **row.record()}


def alone(setting: Setting) -> Iterator[dict[str, Any]]:
    """The plainest step (float32, all kernels by default), then each lever alone."""
    base = Levers(attention="auto", optimizer="for-loop")
    yield from _measure(setting, 16, [base, *(replace(base, **lever) for lever in ALONE)])


def together(setting: Setting) -> Iterator[dict[str, Any]]:
    """The levers that make a step faster, each on top of those before it."""
    steps = [Levers(attention="auto", optimizer="for-loop")]
    for lever in LADDER:
        if setting.toy and "compiled" in lever:
            continue  # takes a CPU most of a minute
        steps.append(replace(steps[-1], **lever))
    yield from _measure(setting, 32, steps)
