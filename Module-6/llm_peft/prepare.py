"""A base model made ready for fine-tuning: loaded, frozen, with an adapter, and with what tells it from another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from llm_core.model import GPT
from llm_core.store.registry import load_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from llm_peft.lora.base import fingerprint_of_model
from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.inject import find_targets, inject
from llm_peft.quantization.linear import quantize_linears
from llm_peft.settings import FineTune
from llm_peft.sharded import like, whole

PARTS = re.compile(r"(.*)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?")


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to train.

    Attributes:
        model: of transformers, with an adapter on it, where the method has one.
        tokenizer: the base model's.
        base: its fingerprint, taken before anything was changed.
        base_name: what it was loaded as.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    base: str
    base_name: str


def prepare(base_name: str, settings: FineTune, device: str = "cpu", own: bool = False) -> Prepared:
    """Load a base model and put on it what `settings` asks for.

    Args:
        base_name: "smollm2-135m", a folder of transformers, or an id of the hub.
        settings: method and adapter.
        device: where the linear layers are quantised; a training loop moves the rest by itself.
        own: load a `GPT` of this course in place of transformers' class, as a serving engine of ours wants it.

    Raises:
        ValueError: when there is no such model, no network, targets that match nothing, or a method that cannot be
            here.
    """
    model, tokenizer = load_model(base_name, transformers=not own, dtype=settings.torch_dtype)
    if own and not isinstance(model, GPT):
        wrong = f"{base_name} is a {type(model).__name__}, which is not of this course's GPT class"
        raise ValueError(f"{wrong}; take a model of Llama's architecture")
    if own and settings.library != "ours" and settings.method != "full":
        raise ValueError(f"library={settings.library!r} is for models of transformers; here take library='ours'")
    if tokenizer is None:
        raise ValueError(f"{base_name} has no tokenizer; take another model")
    base = fingerprint_of_model(model)
    if settings.method == "full":
        model.requires_grad_(True)
    else:
        find_targets(model, settings.lora.target_modules)  # before minutes go into quantising
        if settings.method == "qlora":
            model = to_four_bits(model, settings, device)
        add_adapter(model, settings.lora, settings.library)
    if settings.gradient_checkpointing:
        checkpoint_blocks(model)
    return Prepared(model.train(), tokenizer, base, base_name)


def to_four_bits(model: nn.Module, settings: FineTune, device: str = "cpu") -> nn.Module:
    """Put the linear layers of the blocks into NF4, with scales in eight bits, in place."""
    if settings.library == "ours":
        quantize_linears(model)
        return model
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise ValueError("method='qlora' needs the package bitsandbytes; install it, or take library='ours'") from error
    for name in find_targets(model, "all-linear"):
        layer: Any = model.get_submodule(name)
        if not isinstance(layer, nn.Linear) or layer.in_features % 64:
            wrong = f"{name} is a {type(layer).__name__} of {getattr(layer, 'in_features', 'other')} inputs"
            raise ValueError(f"{wrong}, and bitsandbytes packs nn.Linear with a multiple of 64; take method='lora'")
    for name in find_targets(model, "all-linear"):
        layer = model.get_submodule(name)
        four: Any = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=settings.torch_dtype,
            compress_statistics=True, quant_type="nf4", quant_storage=settings.torch_dtype,
            device="meta",
        )  # fmt: skip
        # On CPUs with AVX512-BF16 a forward pass in evaluation mode repacks the weight for a kernel without a backward
        # pass: training after a validation would have wrong gradients, and only a warning.
        four.support_avx512bf16_for_cpu = False
        weight: Any = bnb.nn.Params4bit(
            layer.weight.data.contiguous(), requires_grad=False, compress_statistics=True, quant_type="nf4",
            quant_storage=settings.torch_dtype, module=four,
        )  # fmt: skip
        four.weight = weight.to(device)  # quantised here
        four.bias = layer.bias
        model.set_submodule(name, four)
    return model


def add_adapter(model: nn.Module, config: LoRAConfig, library: str) -> None:
    """Freeze the model and put an adapter on it, in place; peft's layers keep the model's own class, as ours do."""
    if library == "ours":
        inject(model, config)
        return
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import cast_adapter_dtype

    targets = find_targets(model, config.target_modules)
    start: Any = {"kaiming": True, "pissa": "pissa"}[config.init_lora_weights]
    alpha: Any = config.lora_alpha  # a whole number to peft's types, and any to its arithmetic
    inject_adapter_in_model(
        LoraConfig(
            r=config.r, lora_alpha=alpha, target_modules=targets, lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora, use_dora=config.use_dora, init_lora_weights=start,
        ),
        model,
    )  # fmt: skip
    cast_adapter_dtype(model, "default")


def checkpoint_blocks(model: nn.Module) -> None:
    """Gradient checkpointing of transformers.

    A frozen embedding gives an output without a gradient, and a checkpointed block would then have none to pass on: the
    embedding's output is made to ask for one.
    """
    body: Any = model
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(f"{type(model).__name__} has no gradient checkpointing in transformers; turn it off")
    name = "activation_checkpointing_enable"  # its name before transformers 5.2x stays for older ones
    enable = getattr(body, name, None) or body.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    body.enable_input_require_grads()


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name: of an adapter `...q_proj.lora_A` and so on, of ours as of peft's; else the weights."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            match = PARTS.fullmatch(name)
            found[f"{match[1]}.{match[2]}" if match else name] = parameter.detach()
    return found


def gathered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `trained_state` whole, on the CPU, where they are in shards; every rank calls it."""
    return {name: whole(values).cpu() for name, values in state.items()}


def load_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors of `trained_state` into a model that is prepared alike.

    Raises:
        ValueError: when names or shapes are others.
    """
    ours = trained_state(model)
    for name in sorted(ours.keys() ^ state.keys()):
        there = "there" if name in state else "not there"
        raise ValueError(f"{name} is {there}, and the model has it otherwise: the weights are of another run")
    for name, values in ours.items():
        if values.shape != state[name].shape:
            raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, and the model's {tuple(values.shape)}")
    with torch.no_grad():
        for name, values in ours.items():
            values.copy_(like(state[name], values))
