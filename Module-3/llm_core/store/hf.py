"""A model as a folder that transformers reads, and a Llama's folder as a model of ours.

transformers itself reads such a folder: what a key that is absent means, which names old files gave their tensors,
how many files there are. Its weights then become ours, so that both are one model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from llm_data.errors import is_failure, one_line
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from llm_core.generate import stop_ids
from llm_core.model import GPT, GPTConfig

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"
)  # fmt: skip
# What our model does, and does not do otherwise.
FIXED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "is_causal": True}


def pretrained(kind: Any, name_or_path: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained`, with an error of one line, also for weights that transformers would draw at random.

    Code that lies beside a model is never run, nor asked about.

    Raises:
        ValueError: when there is nothing to load, or a part of it is missing or of another shape.
    """
    failed = f"{str(name_or_path)!r} gives no causal language model:"
    is_model = hasattr(kind, "from_config")
    if is_model:
        options |= {"output_loading_info": True}
        _refuse_other_shapes(name_or_path, failed)
    try:
        with _no_progress_bar():
            loaded = kind.from_pretrained(name_or_path, trust_remote_code=False, **options)
    except BaseException as error:  # odd files raise anything, and a panic in Rust is no Exception
        if not is_failure(error):
            raise
        raise ValueError(f"{failed} {one_line(error)}") from error
    if not is_model:
        return loaded
    model, found = loaded
    for name in sorted(found["missing_keys"]):
        raise ValueError(f"{failed} its weights lack {name}; it is incomplete, or of another kind")
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without the bar that transformers draws on standard error, a line for each model."""
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _refuse_other_shapes(place: str | Path, failed: str) -> None:
    """Compare a folder's weights with its configuration before memory is taken for them.

    What this cannot read, such as a hub id or another format, is left to `from_pretrained`.
    """
    there: dict[str, tuple[int, ...]] = {}
    if (Path(place) / "adapter_config.json").is_file():
        raise ValueError(f"{failed} it is an adapter; merge it into its model first (peft's merge_and_unload)")
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(f"{failed} its weights are quantised (quantization_config); take those of full precision")
        if "/" in str(getattr(config, "_attn_implementation", None)):  # a name on the hub: code of somebody else's
            raise ValueError(f"{failed} its attn_implementation is code from the hub; remove that key")
        whole = Path(place) / "model.safetensors"
        for path in [whole] if whole.is_file() else sorted(Path(place).glob("model-*-of-*.safetensors")):
            with safe_open(path, framework="pt") as file:
                there |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        layers = getattr(config, "num_hidden_layers", None) or 0
        if there and layers > len(there):
            raise ValueError(f"{failed} its config.json has {layers:,} layers, and its weights {len(there)} tensors")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False) if there else nn.Module()
    except ValueError as error:
        if str(error).startswith(failed):
            raise
        return
    except Exception:
        return
    for name, wanted in model.state_dict().items():
        if name in there and there[name] != tuple(wanted.shape):
            made = f"{name} has the shape {there[name]}, and its config.json makes it {tuple(wanted.shape)}"
            raise ValueError(f"{failed} {made}")


def model_from_folder(folder: Path | str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """A model and its tokenizer (None where there is none): ours for a Llama that it can be, else one of transformers.

    Raises:
        FileNotFoundError: when the folder has no configuration.
        ValueError: when it holds no causal language model, or not all of one.
    """
    try:
        model: nn.Module = _llama_from_folder(folder, dtype)
    except ValueError:  # another architecture; or, told by transformers then, weights that do not fit
        model = pretrained(AutoModelForCausalLM, folder, dtype=dtype).eval()
    return model, tokenizer_of_folder(folder)


def tokenizer_of_folder(folder: Path | str) -> Any:
    """The tokenizer of a folder of transformers; None where there is none."""
    there = any((Path(folder) / name).is_file() for name in TOKENIZER_FILES)
    return pretrained(AutoTokenizer, folder) if there else None


def _llama_from_folder(folder: Path | str, dtype: torch.dtype) -> GPT:
    """The model of a Llama's folder, with the same logits as `LlamaForCausalLM.from_pretrained(folder)`.

    Raises:
        FileNotFoundError: when the folder has no configuration.
        ValueError: for a configuration that our model cannot follow, with the key; for weights that are missing, of
            other shapes, or cut short.
    """
    config = read_config(folder)
    theirs = pretrained(AutoModelForCausalLM, folder, dtype=dtype)
    # Where a file holds both matrices and they differ, transformers leaves them apart, whatever config.json says.
    tied = theirs.lm_head.weight is theirs.model.embed_tokens.weight
    with torch.device("meta"):
        model = GPT(replace(config, tie_word_embeddings=tied))
    model.load_state_dict(theirs.state_dict(), assign=True)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.stop_ids = stop_ids(theirs)
    return model.to(dtype).eval()


def read_config(folder: Path | str) -> GPTConfig:
    """Our configuration from a Llama's `config.json`.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: for a configuration of another model, or of a Llama that ours is not, with the key.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give a run of babygpt, or a folder of transformers")
    theirs = pretrained(AutoConfig, folder)
    for key, fixed in FIXED.items():
        if getattr(theirs, key, fixed) != fixed:
            wrong = f"{path}: {key}={getattr(theirs, key)!r}, and this model knows {fixed!r} only"
            raise ValueError(f"{wrong}; take transformers'")
    rope = dict(theirs.rope_parameters or {})
    theta = rope.pop("rope_theta", 10_000.0)
    if rope.pop("rope_type", rope.pop("type", "default")) != "default" or any(rope.values()):
        raise ValueError(f"{path}: rotary positions are scaled, which this model does not know; take transformers'")
    values = {name: getattr(theirs, name, None) for name in GPTConfig.__dataclass_fields__}
    try:
        config = GPTConfig(**{**values, "rope_theta": theta})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if theirs.head_dim != config.head_dim:
        raise ValueError(f"{path}: head_dim={theirs.head_dim}, and this model has hidden_size / heads only")
    return config


def model_to_folder(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, folder: Path | str) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained(folder)` loads, and `AutoTokenizer` where a tokenizer is given.

    Raises:
        ValueError: for a model that is neither our `GPT`, which becomes a Llama, nor one of transformers.
    """
    folder = Path(folder)
    if type(model) is GPT:
        _llama_to_folder(model, tokenizer, folder)
    elif not isinstance(model, PreTrainedModel):
        wrong = f"{type(model).__name__} is no causal language model that transformers would load"
        raise ValueError(f"{wrong}; save its state_dict with torch.save")
    else:
        body: Any = model
        with _no_progress_bar():
            body.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _llama_to_folder(model: GPT, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # None where there is no tokenizer: LlamaConfig would take 1 and 2, and `generate` stop at an ordinary token.
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ends: dict[str, Any] = {name: getattr(tokenizer, name, None) for name in names}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config = LlamaConfig(**asdict(model.config), **ends, dtype=dtype, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    if model.stop_ids:
        GenerationConfig(**{**ends, "eos_token_id": list(model.stop_ids)}).save_pretrained(folder)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]  # one matrix, and safetensors keeps each once
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
