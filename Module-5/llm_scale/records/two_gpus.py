"""Training sharded over two GPUs, in turns with data parallel where that fits: tokens/s, MFU and bytes of a rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from course import scale
from course.record import Setting
from llm_scale.records.on_ranks import Entry, Turns, measure
from llm_scale.records.task import Task

RANKS = 2
TIME = 2048
NAMES = {"fsdp2": "FSDP2", "fsdp2-no-reshard": "FSDP2, not resharded", "ddp": "DDP"}


def one_billion(setting: Setting) -> Iterator[dict[str, Any]]:
    """The 1B, 4 rows a rank."""
    yield from sharded(setting, entries("1B", 4, False, setting), Turns(3, 1, 3))


def seven_billion(setting: Setting) -> Iterator[dict[str, Any]]:
    """The 7B, 4 rows a rank, with activation checkpointing."""
    yield from sharded(setting, entries("7B", 4, True, setting), Turns(2, 1, 1))


def entries(model: str, rows: int, checkpointing: bool, setting: Setting) -> list[Entry]:
    """FSDP2 with and without resharding after the forward pass, in 16 bits by its policy; DDP under autocast.

    At toy size one of them, in float32.
    """
    if setting.toy:
        return [Entry("FSDP2", "fsdp2", Task("1M", 1, 32, checkpointing=checkpointing, device=setting.device))]
    return [
        Entry(label, name, Task(
            model, rows, TIME, "bf16-mixed" if name == "ddp" else "bf16-master", checkpointing, setting.device
        )) for name, label in NAMES.items()
    ]  # fmt: skip


def sharded(setting: Setting, rows: list[Entry], turns: Turns) -> Iterator[dict[str, Any]]:
    """The entries' rows, or one that says why there are none."""
    on_gpus = setting.device == "cuda"
    if on_gpus and torch.cuda.device_count() < RANKS:
        found = torch.cuda.device_count()
        yield {"row": "all", "missing": f"{RANKS} GPUs are needed, and torch sees {found}"}
        return
    memory = scale.memory if on_gpus else scale.memory // RANKS
    yield from measure(rows, RANKS, Turns(1, 1, 1) if setting.toy else turns, memory)
