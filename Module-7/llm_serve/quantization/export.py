"""A quantised model as a folder in compressed-tensors' format, which transformers and vLLM load, and back.

The tensors of our layers have the format's names already, so that a folder is the model's state and a
`quantization_config`. vLLM has kernels for integers of 4 and 8 bits on all of its devices; transformers reads all that
is written here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from llm_core.generate import set_stop_ids, stop_ids
from llm_core.model import GPT
from llm_core.store.hf import pretrained, read_config, tokenizer_of_folder
from llm_core.store.registry import save_model
from llm_data.errors import one_line, reason
from llm_peft.quantization.linear import NF4Linear
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from course.files import sync
from llm_serve.quantization.formats import Scheme, from_config, ignored, to_config
from llm_serve.quantization.fp8 import Fp8Linear
from llm_serve.quantization.linear import IntLinear
from llm_serve.quantization.rounding import WeightScheme
from llm_serve.quantization.smooth import Int8Linear, Int8Scheme

CONFIG, KEY = "config.json", "quantization_config"


def save_quantized(model: nn.Module, tokenizer: Any, folder: Path | str) -> None:
    """Write a model that `quantize` has made, whole or not at all.

    Args:
        model: our `GPT`, which becomes a Llama, or one of transformers, with quantised layers of one scheme.
        tokenizer: written beside it; None where there is none.
        folder: made here; it must not be there yet, or be empty.

    Raises:
        ValueError: when there is nothing quantised, the layers are of several schemes, or of one that the format does
            not have; when the folder is not empty.
        OSError: when it cannot be written.
    """
    folder, scheme = Path(folder), _scheme_of(model)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; give a folder that is not there yet")
    ignore = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:40]}."))
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({reason(error)}); choose another folder") from None
    try:
        save_model(model, tokenizer, unfinished)
        settings = json.loads((unfinished / CONFIG).read_text("utf-8"))
        settings[KEY] = to_config(scheme, ignore)
        (unfinished / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        for path in unfinished.iterdir():
            sync(path)
        unfinished.chmod(0o755)  # mkdtemp gives the owner alone access
        unfinished.replace(folder)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(unfinished)
        raise


def load_quantized(folder: Path | str) -> tuple[nn.Module, Any]:
    """A model of a folder in compressed-tensors' format and its tokenizer (None where there is none), with our layers:
    our `GPT` for a Llama that it can be, else one of transformers.

    Raises:
        FileNotFoundError: when the folder has no configuration.
        ValueError: when it is not quantised, in a way that is not read here, or its tensors do not fit.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}; give the folder of a quantised model")
    try:
        settings = json.loads((folder / CONFIG).read_text("utf-8")).get(KEY)
        if not settings:
            raise ValueError(f"it has no {KEY}: its weights are not quantised; load it with llm_core's load_model")
        scheme = from_config(settings)
        state = _tensors(folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder}: {one_line(error)}") from error
    model = _body(folder, state)
    dtype = next(values.dtype for name, values in state.items() if "norm" in name)
    try:
        for name, layer in list(model.named_modules()):
            if type(layer) is nn.Linear and not ignored(name, settings.get("ignore") or ()):
                model.set_submodule(name, _empty(layer, scheme, dtype))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    _fill(model, state, folder)
    return model.eval(), tokenizer_of_folder(folder)


def is_quantized(folder: Path | str) -> bool:
    """Whether a place is the folder of a quantised model."""
    path = Path(folder) / CONFIG
    try:
        return path.is_file() and bool(json.loads(path.read_text("utf-8")).get(KEY))
    except (ValueError, AttributeError, OSError, RecursionError):  # whoever loads it says what is wrong with it
        return False


def _scheme_of(model: nn.Module) -> Scheme:
    schemes: set[Scheme] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, NF4Linear):
            raise ValueError(
                f"{name} is in NF4, which compressed-tensors' format has no words for; take rtn, gptq or awq"
            )
        if isinstance(layer, (IntLinear, Fp8Linear)):
            schemes.add(replace(layer.scheme, damping=0.01) if isinstance(layer.scheme, WeightScheme) else layer.scheme)
        elif isinstance(layer, Int8Linear):
            schemes.add(Int8Scheme(alpha=None))
    if len(schemes) != 1:
        raise ValueError(f"the model has layers of {len(schemes)} schemes; quantise it, once, and save what that gives")
    return schemes.pop()


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Of one file, or of several."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError("there is no model.safetensors; take a copy that is whole")
    state: dict[str, Tensor] = {}
    try:
        for path in files:
            state |= load_file(path)
    except Exception as error:  # a file that is cut short raises what safetensors' Rust makes of it
        raise ValueError(f"its weights cannot be read ({one_line(error)}); take a copy that is whole") from error
    return state


def _body(folder: Path, state: dict[str, Tensor]) -> nn.Module:
    """The model as it was before quantisation, its weights not loaded yet."""
    try:
        config = read_config(folder)
    except ValueError:  # of another architecture
        theirs = pretrained(AutoConfig, folder)
        del theirs.quantization_config
        return AutoModelForCausalLM.from_config(theirs, trust_remote_code=False)
    with torch.device("meta"):
        tied = config.tie_word_embeddings and "lm_head.weight" not in state  # where both are there they may differ
        model = GPT(replace(config, tie_word_embeddings=tied))
    if (folder / "generation_config.json").is_file():
        holder: Any = nn.Module()
        holder.generation_config = GenerationConfig.from_pretrained(folder)
        set_stop_ids(model, stop_ids(holder))
    return model


def _empty(layer: nn.Linear, scheme: Scheme, dtype: torch.dtype) -> nn.Module:
    if isinstance(scheme, WeightScheme):
        return IntLinear.empty(layer, scheme, dtype)
    if isinstance(scheme, Int8Scheme):
        return Int8Linear.empty(layer, dtype)
    return Fp8Linear.empty(layer, scheme, dtype)


def _fill(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Give a model its tensors, each of its shape and type, none left over; a tied head is the embedding again."""
    body: Any = model
    wanted = model.state_dict()
    tied = getattr(body.config, "tie_word_embeddings", False) and "lm_head.weight" not in state
    for name in sorted((wanted.keys() ^ state.keys()) - ({"lm_head.weight"} if tied else set())):
        fault = "lack" if name in wanted else "have an unknown"
        raise ValueError(f"{folder}: its weights {fault} {name}; it is incomplete, or of another kind")
    for name, values in state.items():
        there = wanted[name]
        whole = there.is_floating_point() and there.itemsize > 1  # the dtype of scales and norms is the file's
        if there.shape != values.shape or not (whole or there.dtype == values.dtype):
            raise ValueError(
                f"{folder}: {name} is {tuple(values.shape)} of {values.dtype}, and its config.json makes it "
                f"{tuple(there.shape)} of {there.dtype}"
            )
    model.load_state_dict(state, strict=not tied, assign=True)
    if isinstance(model, GPT) and tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    elif tied:
        body.tie_weights()
    for name, layer in model.named_modules():
        if isinstance(layer, IntLinear) and layer.weight_shape.tolist() != [layer.out_features, layer.in_features]:
            raise ValueError(f"{folder}: {name}.weight_shape is {layer.weight_shape.tolist()}; the file is damaged")
