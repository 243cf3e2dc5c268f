"""Where a decoder may look, as masks for `scaled_dot_product_attention`: True for yes, (B or 1, 1, T, S)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from llm_data.rows.collate import document_ids, document_mask
from torch import Tensor

Mask = Bool[Tensor, "#batch 1 time keys"]


def padding_mask(attention_mask: Int[Tensor, "batch keys"], time: int) -> Mask:
    """Where the last `time` positions may look: back, not at padding; at themselves always, so that no row is empty."""
    keys = attention_mask.shape[1]
    key = torch.arange(keys, device=attention_mask.device)
    query = key[keys - time :, None]  # never a square of all keys: a cached step has one query
    return ((key <= query) & attention_mask[:, None, None, :].bool()) | (key == query)


def packed_mask(position_ids: Int[Tensor, "#batch time"], before: int) -> Mask:
    """Where packed rows may look: back, inside their own document, which began where its positions say.

    Args:
        position_ids: of the new positions; they start again at 0 with each document.
        before: positions in the cache, which come before them.
    """
    mask = document_mask(position_ids)
    if not before:
        return mask
    time = position_ids.shape[1]
    query = torch.arange(before, before + time, device=position_ids.device)
    began = (query - position_ids)[:, None, :, None]
    goes_on = (document_ids(position_ids) < 0)[:, None, :, None]  # no document has begun since the cache
    cached = goes_on & (torch.arange(before, device=position_ids.device) >= began)
    return torch.cat([cached, mask], dim=-1)
