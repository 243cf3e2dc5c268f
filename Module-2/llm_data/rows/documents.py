"""Where the documents of a packed row are, from its `position_ids` alone, and what is no target.

It loads nothing but torch: a model reads it without the shards and the packing.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

IGNORE_INDEX = -100  # what torch's cross-entropy and transformers leave out


def document_ids(position_ids: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Which document of its row each position belongs to, from 0; each token of padding counts as one."""
    return (position_ids == 0).cumsum(dim=-1) - 1


def document_mask(position_ids: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch 1 time time"]:
    """Where attention may look, True for yes: at its own document's earlier positions and itself.

    The shape is that of `scaled_dot_product_attention`'s `attn_mask`, one mask for all heads.
    """
    ids = document_ids(position_ids)
    same = ids[:, None, :, None] == ids[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=ids.device).tril()
