"""From rows to the tensors a model takes, in the format of transformers.

Packed rows bring `position_ids` that start again at 0 with every document, and no `attention_mask`: the models of
transformers read the documents' borders from them (with `use_cache=False`; with a cache, their default, they do not
look), and so does the course's own. Padding has position 0 throughout: each of its tokens is a document alone.

Padded rows bring an `attention_mask`. `labels` repeat `input_ids`; the model shifts them. A position whose label is
`IGNORED` is no target: padding, and the first token of a piece, which nothing in its own document precedes.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llm_data.rows.table import RowTable
from llm_data.shards.reader import ranges

IGNORED = -100  # what torch's cross-entropy and transformers leave out
Batch = dict[str, Tensor]


def make_batch(table: RowTable, chosen: np.ndarray) -> Batch:
    """The batch of these rows.

    Args:
        table: all rows.
        chosen: numbers of rows; an empty array gives one row of padding without a target, for a rank that is left
            without rows at an epoch's end but must take its step.

    Returns:
        `input_ids` and `labels`, both (rows, time) int64; `position_ids` likewise for packed rows, else
        `attention_mask`. Time is the context, or the longest row where padding is dynamic or bucketed.
    """
    if not len(chosen):
        return _without_target(table)
    if table.positions is not None:
        ids = table.ids.take(chosen, axis=0).astype(np.int64)
        positions = table.positions.take(chosen, axis=0).astype(np.int64)
        labels = ids.copy()
        labels[positions == 0] = IGNORED
        batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
    else:
        filled = table.filled[chosen]
        width = table.context if table.packing == "static" else int(filled.max())
        there = np.arange(width) < filled[:, None]
        ids = np.full(there.shape, table.pad_id, dtype=np.int64)
        ids[there] = table.ids[ranges(table.first[chosen], filled)]
        labels = np.where(there, ids, IGNORED)
        labels[:, 0] = IGNORED
        batch = {"input_ids": ids, "labels": labels, "attention_mask": there.astype(np.int64)}
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def _without_target(table: RowTable) -> Batch:
    shape = (1, table.context)
    batch = {"input_ids": torch.full(shape, table.pad_id), "labels": torch.full(shape, IGNORED)}
    name = "attention_mask" if table.positions is None else "position_ids"
    return {**batch, name: torch.zeros(shape, dtype=torch.long)}


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
