"""Where adapters go: the layers that a pattern names, replaced in place, and everything else frozen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.layer import DoRALinear, LoRALinear, sizes, start_from_singular_values

ALL_LINEAR = "all-linear"


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a matrix product: torch's, GPT-2's `Conv1D`, bitsandbytes' (a kind of torch's), or one of our
    own of four bits."""
    return isinstance(layer, (nn.Linear, Conv1D)) or (hasattr(layer, "dequantize") and hasattr(layer, "in_features"))


def find_targets(model: nn.Module, target_modules: tuple[str, ...] | str) -> list[str]:
    """The paths of the linear layers that `target_modules` of a `LoRAConfig` means, in the model's order.

    Raises:
        ValueError: when there are none, or a name stands for none, with the names that exist.
    """
    linear = {name: layer for name, layer in model.named_modules() if is_linear(layer)}
    body: Any = model
    head = body.get_output_embeddings() if hasattr(model, "get_output_embeddings") else getattr(model, "lm_head", None)
    names = sorted({name.rpartition(".")[2] for name in linear})
    if target_modules == ALL_LINEAR:
        found = [name for name, layer in linear.items() if layer is not head]
    elif isinstance(target_modules, str):
        try:
            found = [name for name in linear if re.fullmatch(target_modules, name)]
        except re.error as error:
            wrong = f"target_modules={target_modules!r} is no regular expression ({error})"
            raise ValueError(f"{wrong}; for names give a list") from error
    else:
        found = [name for name in linear if any(f".{name}".endswith(f".{end}") for end in target_modules)]
        for end in target_modules:
            if not any(f".{name}".endswith(f".{end}") for name in linear):
                raise ValueError(f"target_modules: no linear layer is called {end!r}; there are {', '.join(names)}")
    if not found:
        raise ValueError(f"target_modules={target_modules!r} matches no linear layer; there are {', '.join(names)}")
    return found


def inject(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Freeze a model and put a `LoRALinear` in place of each target, in the model itself.

    Returns:
        The paths of the layers that have an adapter now.

    Raises:
        ValueError: when nothing is a target, a model has adapters already, or a variant cannot be put on a layer. The
            model is then as it was.
    """
    if next(adapters(model), None) is not None:
        raise ValueError("the model has adapters already; merge them, or load the model anew")
    names = find_targets(model, config.target_modules)
    kind = DoRALinear if config.use_dora else LoRALinear
    if config.use_dora or config.init_lora_weights == "pissa":
        for name in names:
            layer = model.get_submodule(name)
            if type(layer) is not nn.Linear:
                variant = "use_dora" if config.use_dora else "init_lora_weights='pissa'"
                raise ValueError(f"{variant}: {name} is a {type(layer).__name__}, and only nn.Linear can have it")
    model.requires_grad_(False)
    for name in names:
        layer = kind(model.get_submodule(name), config)
        if config.init_lora_weights == "pissa":
            start_from_singular_values(layer)
        layer.train(model.training)
        model.set_submodule(name, layer)
    return names


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Path and layer of each adapter."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            yield name, layer


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors by name, `...q_proj.lora_A` and so on, and nothing of the frozen model."""
    return {
        f"{name}.{part}": values.detach()
        for name, layer in adapters(model)
        for part, values in layer.named_parameters(recurse=False)
    }


def shapes(model: nn.Module, config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor that `inject` would add to a model, which stays as it is.

    Raises:
        ValueError: as `find_targets`.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in find_targets(model, config.target_modules):
        inside, outside = sizes(model.get_submodule(path))
        found |= {f"{path}.lora_A": (config.r, inside), f"{path}.lora_B": (outside, config.r)}
        if config.use_dora:
            found[f"{path}.lora_magnitude_vector"] = (outside,)
    return found
