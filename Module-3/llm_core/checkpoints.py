"""What a checkpoint says about its model, and a model and its tokenizer from a checkpoint alone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from llm_data.errors import one_line
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llm_core.model import GPT, GPTConfig
from llm_core.sampling import set_stop_ids, stop_ids

PREFIX = "model."  # the name of the model inside BabyGPT
FREE = ("attention_dropout", "initializer_range")  # may change between runs of one model
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def describe(model: nn.Module, tokenizer: PreTrainedTokenizerFast | None) -> dict[str, Any]:
    """The model's configuration and the tokenizer as plain values, so that a checkpoint loads with `weights_only`."""
    config: Any = model.config
    ours = isinstance(config, GPTConfig)
    described: dict[str, Any] = {"gpt_config" if ours else "hf_config": asdict(config) if ours else config.to_dict()}
    described["stop_ids"] = list(stop_ids(model))
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

    Every byte is read once, and compared with the checksums in the file.

    Raises:
        ValueError: when it is no such checkpoint, not a whole one, or not what was written.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        reason = _what_is_wrong(checkpoint)
    except Exception as error:  # whatever a file of another kind makes of unpickling
        reason = type(error).__name__
    if reason:
        raise ValueError(f"{path} is no checkpoint of babygpt ({reason}); take another, or begin a new run")
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged:
        raise ValueError(f"{path} is damaged ({damaged} is not what was written); take another checkpoint, or a copy")
    return dict(checkpoint)


def _what_is_wrong(checkpoint: Any) -> str:
    """Why a loaded file is no checkpoint of `BabyGPT`, or nothing."""
    if not isinstance(checkpoint, dict):
        return f"it holds {type(checkpoint).__name__}"
    if not any(isinstance(checkpoint.get(key), dict) for key in ("gpt_config", "hf_config")):
        return "it does not say what model it is of"
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        return "it has no weights"
    told = checkpoint.get("tokenizer", {"json": "", "special": {}})
    if not isinstance(told, dict) or not isinstance(told.get("json"), str) or not isinstance(told.get("special"), dict):
        return "its tokenizer is none"
    return ""


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
        with torch.device("meta"):  # sizes that cannot be take no memory
            refuse_another_shape(checkpoint, _model_of(checkpoint))
        model = _model_of(checkpoint)
        model.load_state_dict(weights)
        set_stop_ids(model, checkpoint.get("stop_ids", ()))
        tokenizer = None
        if "tokenizer" in checkpoint:
            special = {name: token for name, token in checkpoint["tokenizer"]["special"].items() if token is not None}
            made = Tokenizer.from_str(checkpoint["tokenizer"]["json"])
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    except Exception as error:  # a configuration, weights and a tokenizer that do not fit each other
        raise ValueError(f"{path} is no checkpoint of babygpt ({type(error).__name__}: {one_line(error)})") from error
    return model.eval(), tokenizer


def _model_of(checkpoint: dict[str, Any]) -> nn.Module:
    """A new model of a checkpoint's configuration."""
    values = dict(checkpoint.get("gpt_config") or checkpoint["hf_config"])
    layers: int = values.get("num_hidden_layers") or values.get("n_layer") or 0
    if layers > len(checkpoint["state_dict"]):
        raise ValueError(f"{layers} layers, and {len(checkpoint['state_dict'])} tensors")
    if "gpt_config" in checkpoint:
        return GPT(GPTConfig(**values))
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model
