"""`local-lora plan`: what each way of fine-tuning a model takes, before anything of it is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_core.store.registry import NAMES
from transformers import AutoConfig, LlamaConfig

from llm_peft.budget import Budget, budget
from llm_peft.settings import METHODS, FineTune


def folder_of(base_name: str) -> Path | None:
    """Where a base model lies on this machine; None for one of the hub."""
    if base_name in NAMES:
        return Path(NAMES[base_name]())
    path = Path(base_name).expanduser()
    return path if path.is_dir() else None


def config_of(base: str) -> Any:
    """The configuration of a model: of a size of `llm_scale.planner.MODELS`, a folder, or the hub.

    Raises:
        FileNotFoundError: when there is none, and the name is none of the hub's.
        ValueError: when the hub has none, or cannot be reached.
    """
    from llm_core.store.hf import pretrained
    from llm_core.store.registry import HUB_ID
    from llm_scale.planner import MODELS

    if base in MODELS:
        sizes = vars(MODELS[base])
        return LlamaConfig(**{name: value for name, value in sizes.items() if name != "head_dim"})
    if folder_of(base) is None and not HUB_ID.fullmatch(base):
        wrong = f"{base}: no such folder, and none of the sizes {', '.join(MODELS)}"
        raise FileNotFoundError(f"{wrong}; an id of the hub has a / in it")
    return pretrained(AutoConfig, folder_of(base) or base)


def rows(config: Any, settings: FineTune, batch: int, time: int, loss_chunk: int = 0) -> list[tuple[FineTune, Budget]]:
    """A budget for each method, without and with gradient checkpointing."""
    return [
        (each, budget(config, each, batch, time, loss_chunk))
        for method in METHODS
        for checkpointing in (False, True)
        for each in [replace(settings, method=method, gradient_checkpointing=checkpointing,
                             dtype="float32" if method == "full" else settings.dtype)]
    ]  # fmt: skip


def table(found: list[tuple[FineTune, Budget]], memory: float) -> str:
    """The rows as text.

    Args:
        found: from `rows`.
        memory: bytes that there are.
    """
    heads = ("method", "checkpointing", "frozen", "trained", "states", "a step", "together", "fits")
    lines: list[tuple[str, ...]] = [heads]
    for settings, each in found:
        sizes = (each.frozen, each.trained, each.states, each.step, each.bytes)
        fits = "yes" if each.bytes <= memory else "no"
        lines.append((settings.method, "yes" if settings.gradient_checkpointing else "no",
                      *(f"{size / 1e9:.2f}" for size in sizes), fits))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*text, f"GB (10^9 bytes), of {memory / 1e9:.1f} there"])
