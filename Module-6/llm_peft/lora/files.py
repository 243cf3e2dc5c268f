"""An adapter as a folder in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Of a folder of peft's own, a key that is absent means what peft takes it for, and one that would change the numbers and
is not known here is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from llm_data.errors import one_line
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from course.files import write_text, write_whole
from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.inject import adapter_state, adapters, inject, shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
BASE = "base_fingerprint"  # in the weights' header, which peft leaves alone
# peft's defaults where they are not ours.
DEFAULTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False}
# What says nothing of the numbers, or was done when the adapter was made.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode", "target_modules",
    "init_lora_weights", "peft_version", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config",
    "ensure_weight_tying", "loftq_config", "exclude_modules", "layers_pattern", "layers_to_transform",
}  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read.

    Attributes:
        config: its settings; `target_modules` are the paths of its layers.
        state: its tensors, as `adapter_state` names them.
        base: the fingerprint of the model that it was trained on, where the file has one.
        base_name: what that model was called.
    """

    config: LoRAConfig
    state: dict[str, Tensor]
    base: str | None
    base_name: str | None


def save_adapter(
    model: nn.Module, folder: Path | str, base_name: str | None = None, base_fingerprint: str | None = None
) -> None:
    """Write the adapter of a model, and nothing of the model.

    Args:
        model: with adapters that `inject` has put there.
        folder: made where it is missing; a file of the same name is replaced, whole.
        base_name: of the frozen model, for whoever loads the adapter.
        base_fingerprint: of its weights, to tell it from another.

    Raises:
        ValueError: when the model has no adapters.
    """
    found = list(adapters(model))
    if not found:
        raise ValueError("the model has no adapters to save; inject some first")
    write_adapter(folder, found[0][1].config, adapter_state(model), base_name, base_fingerprint,
                  any(isinstance(layer.base_layer, Conv1D) for _, layer in found))  # fmt: skip


def write_adapter(
    folder: Path | str, config: LoRAConfig, state: Mapping[str, Tensor], base_name: str | None = None,
    base_fingerprint: str | None = None, fan_in_fan_out: bool = False,
) -> None:  # fmt: skip
    """Write tensors that `adapter_state` names as an adapter of peft.

    Raises:
        ValueError: for PiSSA, whose frozen weights are not the model's own any more; see `beside_own_weights`.
    """
    if config.init_lora_weights == "pissa":
        raise ValueError("an adapter of PiSSA stands beside changed weights; call beside_own_weights on it first")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    layers = sorted({name.rpartition(".")[0] for name in state})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "inference_mode": True,
        "r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora, "use_dora": config.use_dora, "target_modules": layers, "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
    }  # fmt: skip
    tensors = {f"{PREFIX}{_their_name(name)}": values.detach().cpu().contiguous() for name, values in state.items()}
    header = {"format": "pt", **({BASE: base_fingerprint} if base_fingerprint else {})}
    write_whole(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata=header))
    write_text(folder / CONFIG, json.dumps(settings, indent=2) + "\n")


def read_adapter(folder: Path | str) -> Adapter:
    """Read an adapter of ours or of peft's.

    Raises:
        FileNotFoundError: when the folder holds none.
        ValueError: for another method than LoRA, a key that this does not know and that changes the numbers, and files
            that are damaged, with the key or the file.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; give the folder of an adapter")
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); take a copy") from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"{path}: peft_type is {kind!r}, and this reads LORA only; load it with peft")
    for key, value in settings.items():
        if key not in HARMLESS and key not in DEFAULTS and value not in (None, False, {}, [], "none"):
            raise ValueError(f"{path}: {key}={value!r} changes what the adapter does, and is not known here; use peft")
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            header = file.metadata() or {}
            state = {_our_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has an error of its own
        raise ValueError(f"{folder / WEIGHTS} is damaged ({one_line(error)}); take a copy") from error
    layers = tuple(sorted({name.rpartition(".")[0] for name in state}))
    if not layers:
        raise ValueError(f"{folder / WEIGHTS} holds no tensor; take a copy")
    values = {key: settings.get(key, default) for key, default in DEFAULTS.items()}
    try:
        config = LoRAConfig(target_modules=layers, **values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return Adapter(config, state, header.get(BASE), settings.get("base_model_name_or_path"))


def load_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Put an adapter that was read on its model, in place, on the layers that its tensors name.

    Raises:
        ValueError: when a layer is missing, or a tensor has another shape: the adapter is of another model.
    """
    there = dict(model.named_modules())
    layers = tuple(sorted({name.rpartition(".")[0] for name in adapter.state}))
    config = replace(adapter.config, target_modules=layers)
    for path in layers:
        if path not in there:
            made_for = f" (made for {adapter.base_name})" if adapter.base_name else ""
            raise ValueError(f"the model has no layer {path}; the adapter is of another model{made_for}")
    for name, shape in shapes(model, config).items():
        found = tuple(adapter.state[name].shape) if name in adapter.state else None
        if found != shape:
            raise ValueError(f"{name} has the shape {found}, and the model's layer takes {shape}: of another model")
    inject(model, config)
    state = adapter_state(model)
    with torch.no_grad():
        for name, values in adapter.state.items():
            state[name].copy_(values)


def beside_own_weights(
    config: LoRAConfig, state: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> tuple[LoRAConfig, dict[str, Tensor]]:
    """An adapter of PiSSA as one that stands beside the model's own weights, of twice the rank.

    PiSSA froze W - s B0 A0. So W' = W - s B0 A0 + s B A = W + s [B, -B0] [A; A0].

    Args:
        config: of PiSSA.
        state: the trained tensors.
        start: the same tensors as they began.
    """
    found = {}
    for name, values in state.items():
        is_a = name.endswith("lora_A")
        found[name] = torch.cat([values, start[name] if is_a else -start[name]], dim=0 if is_a else 1)
    alpha = config.lora_alpha * (math.sqrt(2) if config.use_rslora else 2)
    return replace(config, r=2 * config.r, lora_alpha=alpha, init_lora_weights="kaiming"), found


def _their_name(name: str) -> str:
    return name if name.endswith("lora_magnitude_vector") else f"{name}.weight"


def _our_name(name: str) -> str:
    return name.removeprefix(PREFIX).removesuffix(".weight")
