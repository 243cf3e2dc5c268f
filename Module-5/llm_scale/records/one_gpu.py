"""Full training with AdamW on one device, 16 bytes a parameter: predicted against measured bytes, tokens/s and MFU."""

from __future__ import annotations

import time as clock
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from llm_core.costs.counts import CONFIGS, flops_per_token, num_parameters
from llm_core.costs.speed import peak_flops
from llm_precision.benchmark import Variant, benchmark
from llm_precision.budget import Moments, predict_peak
from llm_precision.levers import Levers, build_step

from course import scale
from course.record import Setting
from llm_scale.budget import Setup, budget

ROWS = {"1B": 4, "3B": 2, "7B": 1}  # of a step, each as long as the model's context
SETUP = Setup(precision="bf16-mixed")  # float32 weights, gradients and moments: 16 bytes a parameter
# What makes the 1B faster. Its rows are more: products of 16,384 tokens fill the card.
FAST_ROWS = 8
FAST = {
    "bf16-mixed": SETUP.levers,
    "bf16-mixed, cuDNN attention": replace(SETUP.levers, attention="cudnn"),
    "bf16-true": replace(SETUP.levers, precision="bf16-true"),
    "bf16-true, cuDNN attention": replace(SETUP.levers, precision="bf16-true", attention="cudnn"),
}


def full_training(setting: Setting) -> Iterator[dict[str, Any]]:
    """1B, 3B and 7B, each with and without activation checkpointing."""
    setup = setting.pick(full=SETUP, toy=Setup())
    for name, rows in setting.pick(full=ROWS, toy={"1M": 2}).items():
        for checkpointing in (False, True):
            each = replace(setup, checkpointing=checkpointing)
            yield measured(setting, f"{name}{', checkpointing' * checkpointing}", name, rows, each.levers)


def utilisation(setting: Setting) -> Iterator[dict[str, Any]]:
    """The 1B's MFU with the levers that need no compiler."""
    for label, levers in setting.pick(full=FAST, toy={"fp32": Setup().levers}).items():
        yield measured(setting, label, setting.pick(full="1B", toy="1M"), setting.pick(full=FAST_ROWS, toy=2), levers)


def compiled(setting: Setting) -> Iterator[dict[str, Any]]:
    """The 1B's MFU compiled, and the seconds from its building to the end of the measuring. A CPU at toy size does not
    compile, which takes it most of a minute."""
    levers = replace(FAST["bf16-mixed"], compiled=True) if not setting.toy else Setup().levers
    begun = clock.perf_counter()
    row = measured(
        setting, "compiled", setting.pick(full="1B", toy="1M"), setting.pick(full=FAST_ROWS, toy=2), levers
    )  # fmt: skip
    yield {**row, "seconds_of_all": clock.perf_counter() - begun}


def measured(setting: Setting, label: str, name: str, rows: int, levers: Levers, memory: int = 0) -> dict[str, Any]:
    """A row: what was predicted and measured, or why it was not tried, or that the memory was not enough after all.

    Args:
        setting: the device and the size.
        label: the row's name.
        name: of the model.
        rows: of a step.
        levers: how it is trained.
        memory: bytes of the device; by default what it has.
    """
    config, memory = CONFIGS[name], memory or scale.memory
    time = setting.pick(full=config.max_position_embeddings, toy=32)
    setup = Setup(precision=levers.precision, checkpointing=levers.checkpointing, loss_chunk=levers.loss_chunk)
    predicted: Moments = budget(config, setup, rows, time)
    if levers.compiled:  # which keeps other activations, and which a `Setup` does not know
        predicted = predict_peak(config, rows, time, levers)
    row = {
        "row": label, "model": name, "parameters": num_parameters(config), "rows": rows, "time": time,
        "precision": levers.precision, "checkpointing": levers.checkpointing, "predicted_peak": predicted.bytes,
        "predicted_moment": predicted.moment, "memory": memory,
    }  # fmt: skip
    if predicted.bytes > memory:
        return {**row, "missing": f"{predicted.bytes / 1e9:.1f} GB predicted, and the device has {memory / 1e9:.1f} GB"}
    batches = [torch.randint(config.vocab_size, (rows, time), device=setting.device) for _ in range(2)]
    peak = peak_flops(torch.cuda.get_device_name()) if setting.device == "cuda" else None
    tokens = rows * time
    variant = Variant(
        label, partial(build_step, config, levers, batches, setting.device), tokens,
        flops_per_token(config, time) * tokens,
    )  # fmt: skip
    (found,) = benchmark([variant], setting.device, setting.pick(full=5, toy=1), 1, peak)
    told = {name: value for name, value in found.record().items() if name not in ("name", "utilisation")}
    return {**row, **told, "mfu": found.utilisation, "peak_flops": peak}
