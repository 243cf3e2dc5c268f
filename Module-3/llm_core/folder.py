"""A model as a folder that transformers reads, and a Llama's folder as a model of ours: `config.json`, safetensors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from llm_core.model import GPT, GPTConfig
from llm_core.pretrained import pretrained

WEIGHTS = "model.safetensors"
# What our model does, and does not do otherwise.
FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "model_type": "llama"}


def save_pretrained(model: GPT, folder: Path | str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write what `LlamaForCausalLM.from_pretrained(folder)` loads, and `AutoTokenizer` where a tokenizer is given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # None where there is no tokenizer: LlamaConfig would take 1 and 2, and `generate` stop at an ordinary token.
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ends: dict[str, Any] = {name: getattr(tokenizer, name, None) for name in names}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config = LlamaConfig(**asdict(model.config), **ends, dtype=dtype, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]  # one matrix, and safetensors keeps each once
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def from_pretrained(folder: Path | str, dtype: torch.dtype = torch.float32) -> GPT:
    """The model of a folder written by us, or by `LlamaForCausalLM.save_pretrained`; in evaluation mode, as theirs.

    Raises:
        FileNotFoundError: when the folder has no configuration or no weights.
        ValueError: for a configuration that our model cannot follow, with the key; for weights of other shapes, or cut
            short.
    """
    folder = Path(folder)
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; give a folder written by save_pretrained")
    model = GPT(read_config(folder / "config.json"))
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read ({error}); copy it again") from error
    if model.config.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        name = min(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise ValueError(
            f"{folder}: {name} has the shape {found.get(name)}, and its config.json makes it {wanted.get(name)}"
        )
    model.load_state_dict(tensors)
    return model.to(dtype).eval()


def read_config(path: Path) -> GPTConfig:
    """Our configuration from a Llama's `config.json`."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no keys; give the configuration of a model")
    for key, fixed in FIXED.items():
        if values.get(key, fixed) != fixed:
            raise ValueError(f"{path}: {key}={values[key]!r}, and this model knows {fixed!r} only; take transformers'")
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or values.get("rope_scaling"):
        raise ValueError(f"{path}: rotary positions are scaled, which this model does not know; take transformers'")
    known = {name: values[name] for name in GPTConfig.__dataclass_fields__ if values.get(name) is not None}
    if "rope_theta" in rope:
        known["rope_theta"] = rope["rope_theta"]
    try:
        config = GPTConfig(**known)
    except TypeError as error:  # a size that is left out, or no number
        raise ValueError(f"{path}: {error}") from error
    if values.get("head_dim", config.head_dim) != config.head_dim:
        raise ValueError(f"{path}: head_dim={values['head_dim']}, and this model has hidden_size / heads only")
    return config


def load_folder(folder: Path | str) -> tuple[nn.Module, Any]:
    """A model and its tokenizer (None where there is none): ours for a Llama that it can be, else one of transformers.

    Raises:
        FileNotFoundError: when the folder has no configuration.
        ValueError: when it holds no causal language model, or not all of one.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give a run of babygpt, or a folder of transformers")
    model: nn.Module
    try:
        model = from_pretrained(folder)
    except (ValueError, FileNotFoundError):  # another architecture, or its weights in several files
        model = pretrained(AutoModelForCausalLM, folder, dtype=torch.float32).eval()
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return model, pretrained(AutoTokenizer, folder) if has_tokenizer else None


def save_folder(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path | str) -> None:
    """`save_pretrained` for a model of ours or of transformers, with its tokenizer."""
    if isinstance(model, GPT):
        save_pretrained(model, folder, tokenizer)
    else:
        body: Any = model
        body.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
