"""Where a position may look, as masks for `scaled_dot_product_attention`: True for yes, (B or 1, 1, T, S).

With `causal` a position looks back, as in a decoder; without, to both sides, as in an encoder.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from llm_data.rows.documents import document_ids, document_mask
from torch import Tensor

Mask = Bool[Tensor, "#batch 1 time keys"]


def padding_mask(attention_mask: Int[Tensor, "batch keys"], time: int, causal: bool = True) -> Mask:
    """Where the last `time` positions may look: not at padding; at themselves always, so that no row is empty."""
    keys = attention_mask.shape[1]
    key = torch.arange(keys, device=attention_mask.device)
    query = key[keys - time :, None]  # never a square of all keys: a cached step has one query
    there = attention_mask[:, None, None, :].bool()
    return (there & (key <= query) if causal else there) | (key == query)


def packed_mask(position_ids: Int[Tensor, "#batch time"], before: int = 0, causal: bool = True) -> Mask:
    """Where packed rows may look: inside their own document, which began where its positions say.

    Args:
        position_ids: of the new positions; they start again at 0 with each document. Padding is at 0 throughout, and
            sees itself.
        before: positions in the cache, which come before them; 0 without `causal`.
        causal: see above.
    """
    if not causal:
        ids = document_ids(position_ids)
        return ids[:, None, :, None] == ids[:, None, None, :]
    mask = document_mask(position_ids)
    if not before:
        return mask
    time = position_ids.shape[1]
    query = torch.arange(before, before + time, device=position_ids.device)
    began = (query - position_ids)[:, None, :, None]
    goes_on = (document_ids(position_ids) < 0)[:, None, :, None]  # no document has begun since the cache
    cached = goes_on & (torch.arange(before, device=position_ids.device) >= began)
    return torch.cat([cached, mask], dim=-1)


def prefix_mask(prefix: int, time: int) -> Mask:
    """Where a prefix language model may look: the first `prefix` positions at each other, the others back."""
    mask = torch.ones(time, time, dtype=torch.bool).tril()
    mask[:, :prefix] = True
    return mask[None, None]
