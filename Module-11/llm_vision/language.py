"""A causal language model that is given vectors in place of token ids: ours, or one of transformers.

`GPT` takes ids only; what its decoder does behind the embedding is done here with its own blocks, masks and norm.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from llm_core.foreign import text_config
from llm_core.masks import padding_mask
from llm_core.model import GPT, KeyValueCache, rotary
from torch import Tensor, nn

Embeds = Float[Tensor, "batch time hidden"]


def width(model: nn.Module) -> int:
    """C, of a vector that stands for a token."""
    body: Any = model
    return int(text_config(body.config).hidden_size)


def embedding(model: nn.Module) -> nn.Embedding:
    """The table that turns ids into vectors."""
    body: Any = model
    table: nn.Embedding = body.model.embed_tokens if isinstance(model, GPT) else body.get_input_embeddings()
    return table


def head(model: nn.Module) -> nn.Module:
    """What turns the last vectors into logits."""
    body: Any = model
    made: nn.Module = body.lm_head if isinstance(model, GPT) else body.get_output_embeddings()
    return made


def new_cache(model: nn.Module) -> Any:
    """An empty cache of keys and values, of the model's kind."""
    if isinstance(model, GPT):
        return KeyValueCache()
    from transformers import DynamicCache

    body: Any = model
    return DynamicCache(config=body.config)


def features(
    model: nn.Module, embeds: Embeds, attention_mask: Int[Tensor, "batch keys"] | None = None, cache: Any = None
) -> Embeds:
    """What the head reads, from vectors of tokens.

    Args:
        model: a `GPT`, or a causal language model of transformers.
        embeds: of the new positions.
        attention_mask: 1 for tokens and 0 for padding, the cache's positions included; None without padding.
        cache: of the positions before, from `new_cache`; extended in place.

    Raises:
        ValueError: for a row that is longer than the model takes.
    """
    body: Any = model
    time = embeds.shape[1]
    if not isinstance(model, GPT):
        positions = None if attention_mask is None else (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -time:]
        out = body.base_model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=positions, past_key_values=cache,
            use_cache=cache is not None,
        )  # fmt: skip
        made: Tensor = out.last_hidden_state
        return made
    before = 0 if cache is None else len(cache)
    config, decoder = model.config, model.model
    config.refuse_longer(before + time)
    if attention_mask is None:
        attention_mask = embeds.new_ones(1, before + time).long()
        mask = padding_mask(attention_mask, time) if before and time > 1 else None
    else:
        mask = padding_mask(attention_mask, time)
    position_ids = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)[:, before:]
    rotation = rotary(position_ids, config.head_dim, config.rope_theta)
    x = embeds
    for layer in decoder.layers:
        x = layer(x, rotation, mask, cache)
    normed: Tensor = decoder.norm(x)
    return normed
