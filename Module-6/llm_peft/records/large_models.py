"""LoRA and QLoRA of 8 and 34 billion random weights on one GPU: predicted and measured peak, and tokens a second."""

from __future__ import annotations

import time as clock
from collections.abc import Iterator
from typing import Any

import torch
from llm_core.config import GPTConfig
from llm_precision.benchmark import why
from llm_precision.meters import held_and_peak
from llm_scale.planner import MODELS
from transformers import LlamaConfig

from course import scale
from course.record import Setting
from llm_peft.budget import budget
from llm_peft.lora.config import LoRAConfig
from llm_peft.records.steps import random_model, training_step
from llm_peft.settings import FineTune

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip
TOY = GPTConfig(128, 64, 128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def lora_8b(setting: Setting) -> Iterator[dict[str, Any]]:
    """8B beside frozen weights of 16 bits, without and with checkpointing."""
    for checkpointing in (False, True):
        yield measured(setting, "8B", "lora", checkpointing)


def qlora(setting: Setting) -> Iterator[dict[str, Any]]:
    """8B and 34B beside weights of four bits, with checkpointing."""
    for name in ("8B", "34B"):
        yield measured(setting, name, "qlora", True)


def measured(setting: Setting, name: str, method: str, checkpointing: bool, steps: int = 4) -> dict[str, Any]:
    """A row: bytes predicted and measured, tokens a second; or why there are none."""
    sizes = TOY if setting.toy else MODELS[name]
    time = setting.pick(full=2_048, toy=32)
    shape = {key: getattr(sizes, key) for key in SIZES}
    config = LlamaConfig(**shape, max_position_embeddings=time)
    settings = FineTune(
        method=method, lora=LoRAConfig(r=16, lora_alpha=32), gradient_checkpointing=checkpointing,
        dtype=setting.pick(full="bfloat16", toy="float32"),
    )  # fmt: skip
    row: dict[str, Any] = {
        "row": f"{name} {method}{', checkpointing' * checkpointing}", "rows": 1, "time": time, "r": 16,
        "method": method, "checkpointing": checkpointing,
    }  # fmt: skip
    try:
        predicted = budget(config, settings, 1, time)
        row |= {"parameters": predicted.parameters, "predicted_held": predicted.held, "predicted_peak": predicted.bytes}
        if not setting.toy and predicted.bytes > scale.memory:
            wrong = f"predicted {predicted.bytes / 1e9:.0f} GB, and the card has {scale.memory / 1e9:.0f}"
            return {**row, "missing": wrong}
        ids = torch.randint(sizes.vocab_size, (1, time), device=setting.device)
        step, held, peak = held_and_peak(
            lambda: training_step(random_model(config, settings, setting.device), ids), setting.device
        )
        begun = clock.perf_counter()
        for _ in range(steps):
            step()  # gives a number: the GPU has finished
        seconds = (clock.perf_counter() - begun) / steps
        row |= {"held": held, "peak": peak, "seconds": seconds, "tokens_per_second": time / seconds}
    except (ValueError, ImportError, torch.OutOfMemoryError) as error:
        row["missing"] = why(error) if isinstance(error, torch.OutOfMemoryError) else str(error)
    if setting.device == "cuda":
        torch.cuda.empty_cache()
    return row
