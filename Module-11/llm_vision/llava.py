"""A `PictureReader` as transformers' `LlavaForConditionalGeneration`, and back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_data.errors import is_failure, one_line
from torch import nn

from llm_vision.hub import from_transformers, no_progress_bar, their_config, their_weights
from llm_vision.projector import Projector
from llm_vision.reader import PictureReader

TEXT_KEYS = (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False))


def to_llava(reader: PictureReader, tokenizer: Any = None) -> Any:
    """The same reader in transformers' class, on copies of the weights.

    Args:
        reader: with a `GPT` as its language model, which becomes a Llama.
        tokenizer: whose ends of a text its `generate` is to know.

    Raises:
        ValueError: for another language model; for an image token that is no row of the vocabulary, as transformers
            looks it up before it replaces it.
    """
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    gpt = reader.language
    if not isinstance(gpt, GPT):
        raise ValueError(f"the language model is a {type(gpt).__name__}, and this writes a GPT as a Llama; give one")
    if reader.image_token_id >= gpt.config.vocab_size:
        wrong = f"image_token_id={reader.image_token_id} is no row of the vocabulary of {gpt.config.vocab_size}"
        raise ValueError(f"{wrong}; transformers looks it up: take a token that is never written")
    tower = reader.vision.config
    ends: dict[str, Any] = {
        name: getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = LlavaConfig(
        vision_config=their_config(tower), text_config=LlamaConfig(**asdict(gpt.config), **ends),
        image_token_index=reader.image_token_id, image_seq_length=reader.tokens_per_image,
        vision_feature_layer=reader.feature_layer,
        vision_feature_select_strategy="default" if tower.class_token else "full",
        tie_word_embeddings=gpt.config.tie_word_embeddings,
    )  # fmt: skip
    made: Any = LlavaForConditionalGeneration(config)
    tower_of: Any = made.model.vision_tower
    if getattr(tower_of, "pooler", None) is not None:  # a ViT's own; a reader never looks at it
        for values in tower_of.pooler.parameters():
            nn.init.zeros_(values)
    lacking = tower_of.load_state_dict(their_weights(reader.vision), strict=False)
    if lacking.unexpected_keys or any(not name.startswith("pooler.") for name in lacking.missing_keys):
        raise ValueError(f"transformers' tower is another: {lacking}")
    made.model.multi_modal_projector.load_state_dict(reader.projector.state_dict())
    made.model.language_model.load_state_dict(gpt.model.state_dict())
    made.lm_head.load_state_dict(gpt.lm_head.state_dict())
    for name, value in ends.items():
        setattr(made.generation_config, name, value)
    return made.to(reader.projector.linear_1.weight.dtype).train(reader.training)


def from_llava(theirs: Any) -> PictureReader:
    """A reader on copies of the weights of `LlavaForConditionalGeneration`, in evaluation mode.

    Raises:
        ValueError: for a LLaVA that this reader is not, with the key.
    """
    config = theirs.config
    text, tower = config.text_config, config.vision_config
    wanted = "full" if tower.model_type == "siglip_vision_model" else "default"
    checks = [
        ("vision_feature_select_strategy", config.vision_feature_select_strategy, wanted),
        ("projector_hidden_act", config.projector_hidden_act, "gelu"),
        ("multimodal_projector_bias", config.multimodal_projector_bias, True),
        ("text_config.model_type", text.model_type, "llama"),
        ("text_config.head_dim", text.head_dim, text.hidden_size // text.num_attention_heads),
        ("rope_type", dict(text.rope_parameters or {}).get("rope_type", "default"), "default"),
        *((f"text_config.{name}", getattr(text, name), fixed) for name, fixed in TEXT_KEYS),
    ]
    for key, given, fixed in checks:
        if given != fixed:
            raise ValueError(f"the LLaVA has {key}={given!r}, and this reader knows {fixed!r} only; take transformers'")
    if type(config.vision_feature_layer) is not int:
        raise ValueError(f"vision_feature_layer={config.vision_feature_layer}: this reader takes one layer only")
    names = [name for name in GPTConfig.__dataclass_fields__ if name not in ("rope_theta", "tie_word_embeddings")]
    theta = dict(text.rope_parameters or {}).get("rope_theta", text.default_theta)
    tied = theirs.lm_head.weight is theirs.model.language_model.embed_tokens.weight
    gpt = GPT(GPTConfig(
        **{name: getattr(text, name) for name in names}, rope_theta=theta, tie_word_embeddings=tied
    ))  # fmt: skip
    gpt.model.load_state_dict(theirs.model.language_model.state_dict())
    gpt.lm_head.load_state_dict(theirs.lm_head.state_dict())
    vision = from_transformers(theirs.model.vision_tower, without=("pooler.", "head."), place="the tower")
    projector = Projector(vision.config.hidden_size, gpt.config.hidden_size)
    projector.load_state_dict(theirs.model.multi_modal_projector.state_dict())
    reader = PictureReader(vision, gpt, config.image_token_id, config.vision_feature_layer, projector)
    return reader.to(theirs.lm_head.weight.dtype).eval()


def save_llava(reader: PictureReader, tokenizer: Any, folder: Path | str) -> None:
    """Write what `LlavaForConditionalGeneration.from_pretrained(folder)` loads. Raises as `to_llava`."""
    made = to_llava(reader, tokenizer)
    with no_progress_bar():
        made.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_llava(folder: Path | str) -> tuple[PictureReader, Any]:
    """A reader of a LLaVA's folder, in float32, and its tokenizer (None where it has none).

    Raises:
        ValueError: for another folder, one whose weights are not whole, and a LLaVA that this reader is not.
    """
    from llm_core.store.hf import tokenizer_of_folder
    from transformers import AutoConfig, LlavaForConditionalGeneration

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type != "llava":
            raise ValueError(f"it is a {config.model_type}")
        with no_progress_bar():
            theirs, found = LlavaForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
        for name in sorted({*found["missing_keys"], *found["unexpected_keys"]}):
            raise ValueError(f"its weights and its config.json differ in {name}")
    except BaseException as error:  # odd files raise anything, and a panic in Rust is no Exception
        if not is_failure(error):
            raise
        raise ValueError(f"{str(folder)!r} gives no LLaVA: {one_line(error)}") from None
    return from_llava(theirs), tokenizer_of_folder(folder)
