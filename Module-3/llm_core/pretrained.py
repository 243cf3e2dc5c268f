"""A pretrained model and its tokenizer, from a folder or the hub, ready to be trained on packed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

PAD = "<|pad|>"


BROKEN = (OSError, ValueError, TypeError, AttributeError, KeyError, SafetensorError)  # what loading makes of odd files


def pretrained(kind: Any, name_or_path: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained`, with an error of one line, also for weights that transformers would draw at random.

    Raises:
        ValueError: when there is nothing to load, or a part of it is missing or of another shape.
    """
    failed = f"{str(name_or_path)!r} gives no causal language model:"
    if kind is not AutoTokenizer:
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        loaded = kind.from_pretrained(name_or_path, **options)
    except BROKEN as error:
        reason = (str(error) or type(error).__name__).split("\n")[0][:150]
        raise ValueError(f"{failed} {reason}") from error
    if kind is AutoTokenizer:
        return loaded
    model, found = loaded
    for name, theirs, wanted in sorted(found["mismatched_keys"]):
        raise ValueError(f"{failed} {name} has the shape {tuple(theirs)}, and its config.json makes it {tuple(wanted)}")
    for name in sorted(found["missing_keys"]):
        raise ValueError(f"{failed} its weights lack {name}; it is incomplete, or of another kind")
    return model


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
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer
