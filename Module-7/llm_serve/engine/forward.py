"""One step of a model over the new tokens of many sequences, in one flat batch.

All but attention treats a token alone, so that tokens of any sequences may lie side by side: no row is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from llm_core.model import GPT, rotary, rotate
from torch import Tensor

from llm_serve.cache.paged import Group, PagedCache, group, paged_attention


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


@dataclass(frozen=True)
class Batch:
    """The tensors of a step: tokens, their positions and slots in the cache, the calls of attention, and the places of
    the tokens whose logits are wanted, all (tokens,)."""

    tokens: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    slots: Int[Tensor, " tokens"]
    groups: Sequence[Group]
    wanted: Int[Tensor, " wanted"]


def batch_of(
    pieces: Sequence[Piece], block_size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Batch:
    """Lay the pieces side by side."""
    counts = [len(piece.tokens) for piece in pieces]
    places = [(piece, at) for piece in pieces for at in range(piece.start, piece.start + len(piece.tokens))]
    slots = [piece.table[at // block_size] * block_size + at % block_size for piece, at in places]
    end, wanted = 0, list[int]()
    for piece, count in zip(pieces, counts, strict=True):
        end += count
        wanted += range(end - piece.wants, end)

    def integers(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Batch(
        integers([token for piece in pieces for token in piece.tokens]), integers([at for _, at in places]),
        integers(slots),
        group([piece.table for piece in pieces], [piece.start for piece in pieces], counts, block_size, dtype, device),
        integers(wanted),
    )  # fmt: skip


def forward(model: GPT, cache: PagedCache, pieces: Sequence[Piece]) -> Float[Tensor, "wanted vocab"]:
    """Run the new tokens through the model, writing their keys and values, and give the logits that are wanted, in
    the order of the pieces."""
    weight = model.model.embed_tokens.weight
    return run(model, cache, batch_of(pieces, cache.block_size, weight.dtype, weight.device))


@torch.inference_mode()
def run(model: GPT, cache: PagedCache, batch: Batch) -> Float[Tensor, "wanted vocab"]:
    """The step itself: tensors in, tensors out, so that a GPU can replay it as one graph."""
    body, config = model.model, model.config
    split = (1, len(batch.tokens), -1, config.head_dim)
    rotation = rotary(batch.positions[None], config.head_dim, config.rope_theta)
    x = body.embed_tokens(batch.tokens)[None]
    for number, block in enumerate(body.layers):
        layer: Any = block
        attention, h = layer.self_attn, layer.input_layernorm(x)
        q = rotate(attention.q_proj(h).view(split).transpose(1, 2), rotation)[0].transpose(0, 1)  # (tokens, H, D)
        k = rotate(attention.k_proj(h).view(split).transpose(1, 2), rotation)[0].transpose(0, 1)  # (tokens, K, D)
        cache.write(number, batch.slots, k, attention.v_proj(h).view(split)[0])
        seen = paged_attention(q, cache, number, batch.groups)
        x = x + attention.o_proj(seen.flatten(1)[None])
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    logits: Tensor = model.lm_head(body.norm(x[:, batch.wanted]))[0]
    return logits
