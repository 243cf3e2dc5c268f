"""What a checkpoint says about its model, and a model and its tokenizer from a checkpoint alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llm_core.model import GPT, GPTConfig

PREFIX = "model."  # the name of the model inside BabyGPT
FREE = ("attention_dropout", "initializer_range")  # may change between runs of one model
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def describe(model: nn.Module, tokenizer: PreTrainedTokenizerFast | None) -> dict[str, Any]:
    """The model's configuration and the tokenizer as plain values, so that a checkpoint loads with `weights_only`."""
    config: Any = model.config
    ours = isinstance(config, GPTConfig)
    described: dict[str, Any] = {"gpt_config" if ours else "hf_config": asdict(config) if ours else config.to_dict()}
    if tokenizer is not None:
        special = {name: getattr(tokenizer, name) for name in SPECIAL}
        described["tokenizer"] = {"json": tokenizer.backend_tokenizer.to_str(), "special": special}
    return described


def refuse_another_shape(checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Compare a checkpoint's weights with a model's, before torch lists every one that differs.

    Raises:
        ValueError: when they do not fit, with the keys of the configuration that differ.
    """
    found = {name.removeprefix(PREFIX): tuple(values.shape) for name, values in checkpoint["state_dict"].items()}
    wanted = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    theirs = checkpoint.get("gpt_config") or checkpoint.get("hf_config") or {}
    config: Any = model.config
    ours = asdict(config) if isinstance(config, GPTConfig) else config.to_dict()
    other = [
        f"{key}={theirs[key]} (here {ours[key]})"
        for key in ours
        if key in theirs and theirs[key] != ours[key] and key not in FREE
    ]
    # Heads and rotary base leave no trace in the shapes: our own configurations are compared too.
    if found == wanted and not (other and "gpt_config" in checkpoint):
        return
    raise ValueError(
        f"the checkpoint is of another model: {', '.join(other) or 'its weights have other names'}; take its "
        "configuration, or begin a new run in another folder"
    )


def refuse_another_tokenizer(checkpoint: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """Compare a checkpoint's tokenizer with the data's: as many tokens are not the same tokens.

    Raises:
        ValueError: when one text would be other ids.
    """
    if "tokenizer" not in checkpoint:
        return
    texts = checkpoint["tokenizer"]["json"], tokenizer.backend_tokenizer.to_str()
    passing = ("truncation", "padding")  # of the last call
    ours, theirs = ({key: part for key, part in json.loads(text).items() if key not in passing} for text in texts)
    if ours != theirs:
        raise ValueError(
            "the model was trained with another tokenizer, and ids of data.tokenizer mean nothing to it; bpe-N is made "
            "anew for each corpus and share: for another text export the run, and give data.tokenizer the folder"
        )


def refuse_other_hyperparameters(checkpoint: dict[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare what the optimiser's state brings along with what was asked for, and would have no effect.

    Raises:
        ValueError: where they differ.
    """
    saved = checkpoint.get("hyper_parameters", {})
    for key in ("learning_rate", "weight_decay", "betas"):
        if key in saved and plain(saved[key]) != plain(wanted[key]):
            raise ValueError(
                f"model.{key}={wanted[key]} has no effect on a run that goes on with {saved[key]}; leave it so, or "
                "export the run and begin another from it with model.pretrained"
            )


def plain(value: Any) -> Any:
    """A tuple as a list: YAML knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint of `BabyGPT` holds; the tensors stay in the file until they are asked for.

    Raises:
        ValueError: when it is no such checkpoint, or not a whole one.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        known = "gpt_config" in checkpoint or "hf_config" in checkpoint
        reason = "" if known and "state_dict" in checkpoint else "it does not say what model it is of"
    except Exception as error:  # whatever a file of another kind makes of unpickling
        reason = type(error).__name__
    if reason:
        raise ValueError(f"{path} is no checkpoint of babygpt ({reason}); take another, or begin a new run")
    return dict(checkpoint)


def load_checkpoint(path: str | Path) -> tuple[nn.Module, PreTrainedTokenizerFast | None]:
    """The model of a checkpoint of `BabyGPT`, in evaluation mode, and the tokenizer it was trained with.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not a checkpoint of `BabyGPT`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    checkpoint = read_checkpoint(path)
    try:
        weights = {name.removeprefix(PREFIX): values for name, values in checkpoint["state_dict"].items()}
        model: nn.Module
        if "gpt_config" in checkpoint:
            model = GPT(GPTConfig(**checkpoint["gpt_config"]))
        else:
            values = dict(checkpoint["hf_config"])
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
        model.load_state_dict(weights)
    except Exception as error:  # a configuration and weights that do not fit each other
        raise ValueError(f"{path} is no checkpoint of babygpt ({type(error).__name__})") from error
    tokenizer = None
    if "tokenizer" in checkpoint:
        special = {name: token for name, token in checkpoint["tokenizer"]["special"].items() if token is not None}
        made = Tokenizer.from_str(checkpoint["tokenizer"]["json"])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    return model.eval(), tokenizer
