"""One step of a model over the new tokens of many sequences, in one flat batch.

All but attention treats a token alone, so that tokens of any sequences may lie side by side: no row is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from llm_core.model import GPT, rotary, rotate
from torch import Tensor

from llm_serve.cache.paged import PagedCache, group, paged_attention


@dataclass(frozen=True)
class Piece:
    """What one sequence has in a step.

    Args:
        tokens: its new ones.
        start: positions it has in the cache.
        table: its blocks, enough for the new tokens too.
        wants: how many of its last tokens' logits are wanted: 0 for a part of a prompt, 1 to write the next token,
            more where several guesses are looked at together.
    """

    tokens: Sequence[int]
    start: int
    table: Sequence[int]
    wants: int = 1


@torch.inference_mode()
def forward(model: GPT, cache: PagedCache, pieces: Sequence[Piece]) -> Float[Tensor, "wanted vocab"]:
    """Run the new tokens through the model, writing their keys and values, and give the logits that are wanted, in
    the order of the pieces."""
    body, config, size = model.model, model.config, cache.block_size
    device, dtype = body.embed_tokens.weight.device, body.embed_tokens.weight.dtype
    counts = [len(piece.tokens) for piece in pieces]
    places = [(piece, at) for piece in pieces for at in range(piece.start, piece.start + len(piece.tokens))]
    positions = torch.tensor([at for _, at in places], device=device)
    slots = torch.tensor([piece.table[at // size] * size + at % size for piece, at in places], device=device)
    tables, starts = [piece.table for piece in pieces], [piece.start for piece in pieces]
    groups = group(tables, starts, counts, size, dtype, device)
    rotation = rotary(positions[None], config.head_dim, config.rope_theta)
    x = body.embed_tokens(torch.tensor([token for piece in pieces for token in piece.tokens], device=device))[None]
    for number, block in enumerate(body.layers):
        layer: Any = block
        attention, h = layer.self_attn, layer.input_layernorm(x)
        split = (1, len(positions), -1, config.head_dim)
        q = rotate(attention.q_proj(h).view(split).transpose(1, 2), rotation)[0].transpose(0, 1)  # (tokens, H, D)
        k = rotate(attention.k_proj(h).view(split).transpose(1, 2), rotation)[0].transpose(0, 1)  # (tokens, K, D)
        cache.write(number, slots, k, attention.v_proj(h).view(split)[0])
        seen = paged_attention(q, cache, number, groups)
        x = x + attention.o_proj(seen.flatten(1)[None])
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    end, wanted = 0, list[int]()
    for piece, count in zip(pieces, counts, strict=True):
        end += count
        wanted += range(end - piece.wants, end)
    if not wanted:
        return x.new_empty(0, config.vocab_size)
    logits: Tensor = model.lm_head(body.norm(x[:, wanted]))[0]
    return logits
