"""A pretrained model and its tokenizer, from a folder or the hub, ready to be trained on packed rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from llm_data.errors import is_failure, one_line
from llm_data.tokenizers.fast import vocab_size
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from llm_core.foreign import vocab_rows

PAD = "<|pad|>"


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


def load_pretrained(
    name_or_path: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """Model and tokenizer. Where padding has no token, or the end-of-text token's, it gets one of its own; and the
    model gets a row for each token that it has none for.

    Args:
        name_or_path: a folder of transformers, or a hub id (which needs a network once).
        dtype: of the weights; float32 to train in.

    Raises:
        ValueError: when there is no such model, or no network, or no fast tokenizer with an end-of-text token.
    """
    tokenizer = pretrained(AutoTokenizer, name_or_path)
    model = pretrained(AutoModelForCausalLM, name_or_path, dtype=dtype)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.eos_token_id is None:
        raise ValueError(f"{str(name_or_path)!r} has no fast tokenizer with an end-of-text token; take another model")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
        model.config.pad_token_id = tokenizer.pad_token_id
    if vocab_size(tokenizer) > vocab_rows(model):
        model.resize_token_embeddings(vocab_size(tokenizer))
    return model, tokenizer
