"""Module 3's `race/train_step.py` for each model of its ladder, under Lightning."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from course import find_root
from course.record import Setting
from llm_precision.benchmark import why

FULL = {"100M": (16, 40), "350M": (8, 20), "1B": (4, 20), "3B": (2, 12), "7B": (2, 12)}


def measure(setting: Setting) -> Iterator[dict[str, Any]]:
    """Tokens/s and peak of each model, with the whole logits and in chunks of 4,096 tokens."""
    file = find_root() / "Module-3/race/train_step.py"
    spec = importlib.util.spec_from_file_location("train_step", file)
    assert spec is not None and spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    precision = setting.pick(full="bf16-true", toy="32-true")
    for name, (rows, steps) in setting.pick(full=FULL, toy={"1M": (2, 4)}).items():
        for chunk in setting.pick(full=(0, 4096), toy=(0,)):
            label = f"{name}{', logits in chunks' if chunk else ''}"
            try:
                measured = script.measure(name, 1, rows, steps, precision, chunk)
                yield {"row": label, **{key: value for key, value in measured.items() if key != "hardware"}}
            except torch.OutOfMemoryError as error:
                yield {"row": label, "model": name, "devices": 1, "missing": why(error)}
            if setting.device == "cuda":
                torch.cuda.empty_cache()
