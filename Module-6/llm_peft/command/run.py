"""A run's folder or an adapter's, from outside: what was trained, on which model, put on it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from llm_core.store.checkpoints import read_checkpoint
from llm_core.store.registry import load_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from llm_peft.local_lora import ADAPTER
from llm_peft.lora.base import fingerprint_of_model
from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.files import CONFIG, beside_own_weights, load_adapter, read_adapter, write_adapter
from llm_peft.lora.files import Adapter as AdapterFile
from llm_peft.lora.merging import merged


@dataclass(frozen=True)
class Trained:
    """What a run has trained.

    Attributes:
        base_name: the model that it was trained on.
        base: that model's fingerprint; None where an adapter's file has none.
        config: the adapter's settings; None after a full fine-tuning.
        state: its tensors, or all weights.
        start: of PiSSA the tensors that it began with; else empty.
    """

    base_name: str
    base: str | None
    config: LoRAConfig | None
    state: dict[str, Tensor]
    start: dict[str, Tensor]


def find_trained(place: Path) -> Path | None:
    """What `read_trained` reads of a place: its best checkpoint, else its last, else the folder of an adapter; or the
    file itself."""
    found = [place / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    found += [place] if place.is_file() or (place / CONFIG).is_file() else []
    return next((path for path in found if path.exists()), None)


def read_trained(place: Path | str) -> Trained:
    """What a run's folder, one of its checkpoints, or the folder of an adapter holds.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is of another kind, or damaged.
    """
    path = find_trained(Path(place).expanduser())
    if path is None:
        raise FileNotFoundError(f"{place}: no run of local-lora and no adapter; give the folder of one")
    if path.is_dir():
        read = read_adapter(path)
        if read.base_name is None:
            raise ValueError(f"{path / CONFIG} does not say what model it is of; write base_model_name_or_path there")
        return Trained(read.base_name, read.base, read.config, read.state, {})
    checkpoint = read_checkpoint(path)
    told: Any = checkpoint.get(ADAPTER)
    if told is None:
        raise ValueError(f"{path} is of another kind of run; give one of local-lora")
    config = None if told["method"] == "full" else LoRAConfig(**told["lora"])
    state = {name.removeprefix("model."): values for name, values in checkpoint["state_dict"].items()}
    return Trained(told["base_name"], told["base"], config, state, told["start"])


def trained_model(
    trained: Trained, base_name: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The base model with what was trained on it, in evaluation mode, and its tokenizer.

    The base is loaded in its full width, also for an adapter that was trained beside four bits.

    Raises:
        ValueError: when the base is another model than the one it was trained on.
    """
    name = base_name or trained.base_name
    model, tokenizer = load_model(name, transformers=True, dtype=dtype)
    if tokenizer is None:
        raise ValueError(f"{name} has no tokenizer; take another model")
    found = fingerprint_of_model(model)
    if trained.base is not None and found != trained.base:
        wrong = f"it was trained on {trained.base_name} (weights {trained.base}), and {name} has weights {found}"
        raise ValueError(f"{wrong}; give the model that it was trained on")
    if trained.config is None:
        model.load_state_dict(trained.state, strict=False)  # tied weights stand once among them
    else:
        load_adapter(model, AdapterFile(trained.config, trained.state, trained.base, name))
    return model.eval(), tokenizer


def export_adapter(trained: Trained, folder: Path) -> None:
    """Write an adapter in PEFT's format."""
    config, state = trained.config, trained.state
    assert config is not None
    if trained.start:
        config, state = beside_own_weights(config, state, trained.start)
    write_adapter(folder, config, state, trained.base_name, trained.base)


def merged_model(
    trained: Trained, base_name: str | None, dtype: torch.dtype
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """One plain model of base and adapter, merged in float32 and then given its width."""
    model, tokenizer = trained_model(trained, base_name)
    plain = model if trained.config is None else merged(model)
    return plain.to(dtype), tokenizer
