"""DeepSpeed where it is installed: an engine without its chatter, and a reason where it is not."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

HOW = "uv sync --extra deepspeed, or pip install deepspeed==0.19.8"


def why_not() -> str:
    """Why DeepSpeed cannot be used here; empty where it can."""
    if importlib.util.find_spec("deepspeed") is None:
        return f"DeepSpeed is not installed ({HOW})"
    return ""


def load_deepspeed() -> Any:
    """The package without its chatter. On CPUs the process group's own messages are taken: those through shared memory
    are compiled at their first use, which takes a compiler and a minute.

    Raises:
        ModuleNotFoundError: where it is not installed.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not torch.cuda.is_available():
        messages: Any = importlib.import_module("deepspeed.comm.torch")  # as an attribute it would be torch itself
        messages.build_shm_op = lambda: None
    deepspeed.utils.logger.setLevel(logging.ERROR)
    return deepspeed


def make_engine(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, Any]
) -> Any:  # fmt: skip
    """`deepspeed.initialize`'s engine, on a rank of a process group that is there.

    Raises:
        ModuleNotFoundError: where it is not installed.
    """
    engine, *_ = load_deepspeed().initialize(model=model, optimizer=optimizer, config=dict(config))
    return engine
