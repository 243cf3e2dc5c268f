"""A `ViT` as a model of transformers, and a ViT's, CLIP's or SigLIP's picture encoder as a `ViT`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from llm_data.errors import is_failure, one_line
from torch import Tensor

from llm_vision.config import ACTIVATIONS, VisionConfig
from llm_vision.images import Preprocess
from llm_vision.patches import from_conv, to_conv
from llm_vision.probe import Probe
from llm_vision.vit import ViT

# What a kind's switches are; any other combination is none of transformers' encoders.
SWITCHES: dict[str, dict[str, Any]] = {
    "vit": {"class_token": True, "patch_bias": True, "pre_layernorm": False},
    "clip_vision_model": {"class_token": True, "patch_bias": False, "pre_layernorm": True, "qkv_bias": True},
    "siglip_vision_model": {"class_token": False, "patch_bias": True, "pre_layernorm": False, "qkv_bias": True},
}
# Our names to those of CLIP and SigLIP, which are alike; the ViT's are ours.
CLIP_NAMES = (
    ("embeddings.cls_token", "embeddings.class_embedding"),
    ("embeddings.position_embeddings", "embeddings.position_embedding.weight"),
    ("embeddings.patch_embeddings.projection.", "embeddings.patch_embedding."),
    ("pre_layernorm.", "pre_layrnorm."), ("layernorm_before.", "layer_norm1."), ("layernorm_after.", "layer_norm2."),
    (".attention.o_proj.", ".self_attn.out_proj."), (".attention.", ".self_attn."), ("layers.", "encoder.layers."),
)  # fmt: skip
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")
PATCHES = "embeddings.patch_embeddings.projection.weight"


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Without the bars that transformers draws on standard error, one for each file."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def kind_of(config: VisionConfig) -> str:
    """Which of transformers' encoders a configuration is: a key of `SWITCHES`.

    Raises:
        ValueError: when it is none, with its switches.
    """
    for kind, switches in SWITCHES.items():
        if all(getattr(config, name) == value for name, value in switches.items()):
            return kind
    told = ", ".join(f"{name}={getattr(config, name)}" for name in SWITCHES["clip_vision_model"])
    raise ValueError(f"no encoder of transformers has {told}; take the switches of ViT, CLIP or SigLIP")


def their_name(name: str, kind: str) -> str:
    """The name of one of our weights in transformers."""
    if kind == "vit":
        return name
    if name.startswith("layernorm."):
        return f"post_{name}"
    for ours, theirs in CLIP_NAMES:
        name = name.replace(ours, theirs, 1)
    return name


def their_weights(vision: ViT) -> dict[str, Tensor]:
    """Our weights under transformers' names and in its shapes."""
    kind, made = kind_of(vision.config), dict[str, Tensor]()
    for name, values in vision.state_dict().items():
        if name == PATCHES:
            values = to_conv(values, vision.config.patch_size)
        elif kind != "vit" and name == "embeddings.cls_token":
            values = values[0, 0]
        elif kind != "vit" and name == "embeddings.position_embeddings":
            values = values[0]
        made[their_name(name, kind)] = values.contiguous()
    return made


def their_config(config: VisionConfig) -> Any:
    """The configuration for transformers."""
    from transformers import CLIPVisionConfig, SiglipVisionConfig, ViTConfig

    kind, values = kind_of(config), asdict(config)
    for name in SWITCHES["clip_vision_model"]:
        values.pop(name)
    if kind == "vit":
        return ViTConfig(**values, qkv_bias=config.qkv_bias)
    if kind == "clip_vision_model":
        return CLIPVisionConfig(**values)
    values.pop("initializer_range")
    return SiglipVisionConfig(**values, vision_use_head=False)


def to_transformers(vision: ViT) -> Any:
    """The same encoder as `ViTModel` (without its pooler), `CLIPVisionModel` or `SiglipVisionModel`, on copies of the
    weights.

    Raises:
        ValueError: for switches that none of them has.
    """
    from transformers import CLIPVisionModel, SiglipVisionModel, ViTModel

    kind, config = kind_of(vision.config), their_config(vision.config)
    if kind == "vit":
        made: Any = ViTModel(config, add_pooling_layer=False)
    else:
        made = (CLIPVisionModel if kind == "clip_vision_model" else SiglipVisionModel)(config)
    made.load_state_dict(their_weights(vision))
    return made.to(vision.layernorm.weight.dtype).train(vision.training)


def our_config(theirs: Any, place: str = "the model") -> VisionConfig:
    """Our configuration from transformers'.

    Raises:
        ValueError: for an encoder that ours is not, with the key.
    """
    kind = theirs.model_type
    if kind not in SWITCHES:
        raise ValueError(f"{place} is a {kind}, and this reads the encoders {', '.join(SWITCHES)}")
    for name in DROPOUTS:
        if getattr(theirs, name, 0.0):
            raise ValueError(f"{place}: {name}={getattr(theirs, name)}, and this model drops nothing; set it to 0")
    act = theirs.hidden_act
    for name, value in (("image_size", theirs.image_size), ("patch_size", theirs.patch_size)):
        if type(value) is not int:
            raise ValueError(f"{place}: {name}={value}, and this model knows squares only; take transformers'")
    if act not in ACTIVATIONS:
        raise ValueError(f"{place}: hidden_act={act!r}, and this model knows {', '.join(ACTIVATIONS)} only")
    names = set(VisionConfig.__dataclass_fields__) - set(SWITCHES["clip_vision_model"])
    values = {name: getattr(theirs, name) for name in names if hasattr(theirs, name)}
    switches = {"qkv_bias": getattr(theirs, "qkv_bias", True), **SWITCHES[kind]}
    return VisionConfig(**values, **switches)


def from_transformers(theirs: Any, without: Sequence[str] = (), place: str = "the model") -> ViT:
    """A `ViT` on copies of the weights of transformers' encoder, in evaluation mode.

    Args:
        theirs: `ViTModel`, `CLIPVisionModel`, `SiglipVisionModel`; or a `CLIPModel` or `SiglipModel`, of which the
            pictures' half is taken.
        without: beginnings of the names of weights that are left behind, such as "pooler" (ViT) or "head" (SigLIP).
        place: for messages.

    Raises:
        ValueError: for another encoder, and for weights that ours has no place for, by name.
    """
    theirs = getattr(theirs, "vision_model", theirs)
    return _filled(our_config(theirs.config, place), theirs.state_dict(), without, place)


def _filled(config: VisionConfig, given: Mapping[str, Tensor], without: Sequence[str], place: str) -> ViT:
    vision, left = ViT(config), dict(given)
    made: dict[str, Tensor] = {}
    for name, wanted in vision.state_dict().items():
        values = left.pop(their_name(name, kind_of(config)), None)
        if values is None:
            raise ValueError(f"{place} lacks {their_name(name, kind_of(config))}; it is incomplete")
        made[name] = (from_conv(values) if name == PATCHES else values).reshape(wanted.shape)
    refuse_left(left, without, place)
    vision.load_state_dict(made)
    return vision.to(made["layernorm.weight"].dtype).eval()


def refuse_left(names: Any, without: Sequence[str], place: str) -> None:
    """Raise a ValueError for weights that have no place here, unless their name begins as one of `without`."""
    foreign = sorted(name for name in names if not name.startswith(tuple(without)))
    if foreign:
        first = re.split(r"[.]", foreign[0])[0]
        raise ValueError(
            f"{place} has {foreign[0]} and {len(foreign) - 1} more that a ViT here has no place for; "
            f'pass without=["{first}"] to leave them behind'
        )


def load_vision(folder: Path | str, without: Sequence[str] = ()) -> ViT:
    """The picture encoder of a folder of transformers, in evaluation mode and float32; see `from_transformers`.

    Where the folder has a probe (`save_vision` writes one), the model must see in it what it saw when it was saved.

    Raises:
        ValueError: for a folder without an encoder that ours can be, and weights that have no place; in one line.
    """
    from transformers import (
        AutoConfig,
        CLIPModel,
        CLIPVisionModel,
        SiglipModel,
        SiglipVisionModel,
        ViTModel,
    )

    kinds: dict[str, Any] = {
        "vit": ViTModel, "clip_vision_model": CLIPVisionModel, "siglip_vision_model": SiglipVisionModel,
        "clip": CLIPModel, "siglip": SiglipModel,
    }  # fmt: skip
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = kinds.get(config.model_type)
        if kind is None:
            raise ValueError(f"it is a {config.model_type}, and none of {', '.join(kinds)}")
        options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
        with no_progress_bar():
            model, found = kind.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **options
            )
        lacking = sorted(found["missing_keys"])
        if lacking:
            raise ValueError(f"its weights lack {lacking[0]}; it is incomplete, or of another kind")
    except BaseException as error:  # odd files raise anything, and a panic in Rust is no Exception
        if not is_failure(error):
            raise
        raise ValueError(f"{str(folder)!r} gives no picture encoder: {one_line(error)}") from None
    refuse_left(found["unexpected_keys"], without, str(folder))
    vision = from_transformers(model, without, str(folder))
    if (Path(folder) / "probe.safetensors").is_file():
        Probe.load(folder).verify_model(vision)
    return vision


def save_vision(vision: ViT, folder: Path | str, preprocess: Preprocess | None = None) -> None:
    """Write what transformers loads, and `load_vision` too; with `preprocess` also its settings, and the probe.

    Raises:
        ValueError: for switches that no encoder of transformers has, or a preprocess of another size.
    """
    if preprocess is not None and preprocess.size != vision.config.image_size:
        wrong = f"preprocess makes pictures of {preprocess.size} pixels, and the model takes {vision.config.image_size}"
        raise ValueError(f"{wrong}; make them the same")
    made = to_transformers(vision)
    with no_progress_bar():
        made.save_pretrained(folder)
    if preprocess is not None:
        their_processor(preprocess).save_pretrained(folder)
        Probe.of(preprocess, vision).save(folder)


def their_processor(preprocess: Preprocess) -> Any:
    """The same preprocessing as transformers' `ViTImageProcessor`, in the version that needs no torchvision."""
    from transformers import ViTImageProcessorPil

    size = {"height": preprocess.size, "width": preprocess.size}
    return ViTImageProcessorPil(size=size, image_mean=list(preprocess.mean), image_std=list(preprocess.std))
