"""From a name to a model and its tokenizer, and back to a folder: the one door for models."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from llm_data.tokenizers.fast import vocab_size
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llm_core.foreign import vocab_rows
from llm_core.store import smollm2
from llm_core.store.checkpoints import model_from_checkpoint
from llm_core.store.hf import model_from_folder, model_to_folder, pretrained, tokenizer_of_folder

PAD = "<|pad|>"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.ckpt)")
# Models of the course, each with what makes its folder.
NAMES = {smollm2.NAME: smollm2.folder, smollm2.HUB_NAME: smollm2.hub_folder}


def _place_of(name_or_path: str | Path) -> str | Path:
    """The folder of a model that the course brings; anything else as it is.

    Raises:
        ValueError: when the model is not on this machine.
    """
    return NAMES[str(name_or_path)]() if str(name_or_path) in NAMES else name_or_path


def load_model(
    name_or_path: str | Path, *, transformers: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, PreTrainedTokenizerFast | None]:
    """A causal language model in evaluation mode and its tokenizer (None where it has none).

    Args:
        name_or_path: "smollm2-135m", the real model that the course brings, its values those of four bits;
            "smollm2-135m-bf16", the same as it was published, for which the first call needs a network; the folder of a
            run of `babygpt`, of which the best checkpoint is taken, else the last; a checkpoint; a folder of
            transformers; else an id of the hub.
            What our `GPT` can be becomes one, with the same logits.
        transformers: keep transformers' own class for what transformers has published or saved, as peft wants it.
        dtype: of the weights; float32 to train in.

    Raises:
        ValueError: when there is no such model, no network, or what is there is damaged.
        FileNotFoundError: when a folder holds neither checkpoints nor a configuration.
    """
    name_or_path = _place_of(name_or_path)
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        found = [path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        path = next((each for each in found if each.is_file()), path)
    if path.is_dir() and not transformers:
        return model_from_folder(path, dtype)
    if not path.exists() and not HUB_ID.fullmatch(str(name_or_path)):
        raise FileNotFoundError(f"{name_or_path}: no such checkpoint, nor a folder")
    if path.is_file() and transformers:
        raise ValueError(f"{path} is a checkpoint of babygpt, not a model of transformers; `babygpt export` makes one")
    if path.is_file():
        model, tokenizer = model_from_checkpoint(path)
        return model.to(dtype), tokenizer
    place = path if path.is_dir() else name_or_path
    model = pretrained(AutoModelForCausalLM, place, dtype=dtype).eval()
    return model, tokenizer_of_folder(path) if path.is_dir() else pretrained(AutoTokenizer, name_or_path)


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerFast | None, folder: Path | str) -> None:
    """Write a folder that transformers loads, and `load_model` too.

    Raises:
        ValueError: for a model that is neither ours nor transformers'.
    """
    model_to_folder(model, tokenizer, folder)


def with_padding(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast | None
) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """A model of transformers and its tokenizer, fit to train on rows that are filled up.

    Where padding has no token, or the end-of-text token's, it gets one of its own; and the model gets a row for each
    token that it has none for. Both are changed in place.

    Raises:
        ValueError: when there is no fast tokenizer with an end-of-text token.
    """
    body: Any = model
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.eos_token_id is None:
        place = getattr(model, "name_or_path", type(model).__name__)
        raise ValueError(f"{place!r} has no fast tokenizer with an end-of-text token; take another model")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
        body.config.pad_token_id = tokenizer.pad_token_id
    if vocab_size(tokenizer) > vocab_rows(model):
        body.resize_token_embeddings(vocab_size(tokenizer))
    return model, tokenizer
