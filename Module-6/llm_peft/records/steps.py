"""One step of a fine-tuning as a function, for whoever times it or looks at its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from llm_core.losses import causal_loss
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from llm_peft.lora.inject import find_targets
from llm_peft.prepare import add_adapter, checkpoint_blocks, load_trained_state, to_four_bits, trained_state
from llm_peft.settings import FineTune


def random_model(config: Any, settings: FineTune, device: str, seed: int = 0) -> nn.Module:
    """A model of random weights, prepared for fine-tuning on a device.

    For four bits each linear layer is drawn on the device, quantised, and let go before the next: a model of 34 billion
    weights is never there in 16 bits.
    """
    torch.manual_seed(seed)
    with torch.device("meta" if settings.method == "qlora" else device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=settings.torch_dtype, trust_remote_code=False)
    if settings.method == "qlora":
        names = set(find_targets(model, "all-linear"))
        for name, part in list(model.named_modules()):
            if name in names:
                drawn = nn.Linear(part.in_features, part.out_features, bias=part.bias is not None, device=device,
                                  dtype=settings.torch_dtype)  # fmt: skip
                holder = nn.Module()
                holder.layer = drawn
                to_four_bits(holder, settings, device)
                model.set_submodule(name, holder.layer)
        _fill(model, device)
    if settings.method == "full":
        model.requires_grad_(True)
    else:
        add_adapter(model, settings.lora, settings.library)
    if settings.gradient_checkpointing:
        checkpoint_blocks(model)
    trained: nn.Module = model.to(device).train()
    return trained


def _fill(model: Any, device: str) -> None:
    """Give what is still on `meta` (embedding, norms, head, tables of angles) numbers on the device."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for part in list(model.modules()):
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_meta:
                values = torch.ones if parameter.ndim == 1 else torch.randn
                filled = values(parameter.shape, device=device, dtype=parameter.dtype) * (
                    1 if parameter.ndim == 1 else 0.02
                )
                part.register_parameter(name, nn.Parameter(filled, requires_grad=False))
        if any(buffer.is_meta for buffer in part.buffers(recurse=False)):  # rotary tables, made from the configuration
            made = type(part)(model.config)
            for name, buffer in made.named_buffers(recurse=False):
                part.register_buffer(name, buffer.to(device), persistent=False)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight


def training_step(model: Any, ids: Tensor, learning_rate: float = 1e-4) -> Callable[[], float]:
    """A step of AdamW on packed rows; each call takes one and gives its loss in nats."""
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, fused=True)
    positions = torch.arange(ids.shape[1], device=ids.device).remainder(-(-ids.shape[1] // 2)).expand_as(ids)

    def step() -> float:
        total, targets = causal_loss(model(input_ids=ids, position_ids=positions, use_cache=False).logits, ids)
        loss = total / targets
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def contenders(
    config: Any, settings: FineTune, libraries: tuple[str, ...], ids: Tensor, device: str, learning_rate: float = 1e-4
) -> dict[str, Callable[[], float]]:
    """A step of each library on a model with the same weights and the same adapter."""
    from dataclasses import replace

    steps: dict[str, Callable[[], float]] = {}
    first: dict[str, Tensor] = {}
    for library in libraries:
        model = random_model(config, replace(settings, library=library), device)
        if first:
            load_trained_state(model, first)
        first = first or {name: values.clone() for name, values in trained_state(model).items()}
        steps[library] = training_step(model, ids, learning_rate)
    return steps
