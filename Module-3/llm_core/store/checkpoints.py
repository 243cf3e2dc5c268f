"""What a checkpoint says about its model, and a model and its tokenizer from a checkpoint alone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from llm_data.errors import is_failure, one_line
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llm_core.generate import set_stop_ids, stop_ids
from llm_core.model import GPT, GPTConfig

PREFIX = "model."  # the name of the model inside BabyGPT
# May change between runs of one model, or say nothing of its numbers.
FREE = (
    "attention_dropout", "initializer_range", "transformers_version", "_name_or_path", "name_or_path", "dtype",
    "torch_dtype", "architectures", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "vocab_size",
    "tie_word_embeddings", "output_attentions", "output_hidden_states", "return_dict", "_attn_implementation",
    "problem_type", "id2label", "label2id", "task_specific_params",
)  # fmt: skip
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
        described["tokenizer"]["chat_template"] = tokenizer.chat_template
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
        if key in theirs
        and key not in FREE
        and "dropout" not in key
        and "drop" not in key
        and plain_json(theirs[key]) != plain_json(ours[key])
    ]
    # Heads, rotary base and the like leave no trace in the shapes.
    if found == wanted and not other:
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


def plain_json(value: Any) -> str:
    """A value as JSON has it, where keys are texts and tuples lists."""
    return json.dumps(value, sort_keys=True, default=str)


def refuse_other_states(checkpoint: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Compare the shapes of an optimiser's states with the parameters': a fused step reads beyond a smaller one.

    Raises:
        ValueError: when one does not fit.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    for saved in checkpoint.get("optimizer_states") or []:
        for place, state in saved.get("state", {}).items():
            for name, values in state.items():
                fits = isinstance(place, int) and place < len(parameters) and isinstance(values, torch.Tensor)
                if not fits or (name != "step" and values.shape != parameters[place].shape) or values.numel() == 0:
                    raise ValueError(
                        f"the checkpoint's optimiser state {name} of parameter {place} does not fit the model; take "
                        "another checkpoint, or export this one and begin a new run from it"
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
    except PermissionError as error:
        raise PermissionError(f"{path} may not be read; change its permissions, or take another") from error
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
    if any(each.untyped_storage().nbytes() < each.numel() * each.element_size() for each in weights.values()):
        return "its weights are less than their shapes"
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
        loaded = model.state_dict()
        if "hf_config" in checkpoint and any(not torch.equal(loaded[name], values) for name, values in weights.items()):
            # Two matrices that differ, and a configuration that ties them: they were apart when this was saved.
            model = _model_of({**checkpoint, "hf_config": {**checkpoint["hf_config"], "tie_word_embeddings": False}})
            model.load_state_dict(weights)
        set_stop_ids(model, checkpoint.get("stop_ids", ()))
        tokenizer = None
        if "tokenizer" in checkpoint:
            special = {name: token for name, token in checkpoint["tokenizer"]["special"].items() if token is not None}
            made = Tokenizer.from_str(checkpoint["tokenizer"]["json"])
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
            tokenizer.chat_template = checkpoint["tokenizer"].get("chat_template")
    except BaseException as error:  # a configuration, weights and a tokenizer that do not fit; a panic in Rust
        if not is_failure(error):
            raise
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
