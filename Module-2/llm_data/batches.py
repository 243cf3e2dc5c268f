"""From rows to the tensors a model takes, in the format of transformers.

Packed rows bring `position_ids` that start again at 0 with every document, and no `attention_mask`: the models of
transformers read the documents' borders from them, and so does the course's own. Padded rows bring an
`attention_mask`. `labels` repeat `input_ids`; the model shifts them. A position whose label is `IGNORED` is no target:
padding, and the first token of a piece, which nothing in its own document precedes.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llm_data.packing import PADDED, Rows
from llm_data.token_shards import TokenShards, ranges

IGNORED = -100  # what torch's cross-entropy and transformers leave out
Batch = dict[str, Tensor]


def make_batch(tokens: TokenShards, rows: Rows, chosen: np.ndarray, pad_id: int) -> Batch:
    """The batch of these rows.

    Args:
        tokens: where the ids are.
        rows: the plan.
        chosen: numbers of rows; an empty array gives one row of padding without a target, for a rank that is left
            without rows at an epoch's end but must take its step.
        pad_id: id that fills up.

    Returns:
        `input_ids` and `labels`, both (rows, time) int64; `position_ids` likewise for packed rows, else
        `attention_mask`. Time is the context, or the longest row where padding is dynamic or bucketed.
    """
    pieces = rows.pieces(chosen)
    length = rows.length[pieces]
    ids = tokens.gather(rows.document[pieces], rows.start[pieces], length)
    per_row = rows.first[chosen + 1] - rows.first[chosen]
    row = np.repeat(np.arange(len(chosen)), per_row)
    filled = np.bincount(row, weights=length, minlength=len(chosen)).astype(np.int64)
    height = max(len(chosen), 1)
    tight = rows.packing in ("dynamic", "bucketed")
    width = int(filled.max()) if tight and len(chosen) else rows.context
    before = np.cumsum(length) - length
    offset = before - (np.cumsum(filled) - filled)[row]  # where in its row a piece begins
    begin = row * width + offset  # the same in the batch laid out flat
    place = ranges(begin, length)
    input_ids = np.full(height * width, pad_id, dtype=np.int64)
    input_ids[place] = ids
    labels = np.full(height * width, IGNORED, dtype=np.int64)
    labels[place] = ids
    labels[begin] = IGNORED
    batch = {"input_ids": input_ids, "labels": labels}
    if rows.packing in PADDED:
        mask = np.zeros(height * width, dtype=np.int64)
        mask[place] = 1
        if not len(chosen):
            mask[0] = 1  # a row that attends to nothing would be all NaN
        batch["attention_mask"] = mask
    else:
        # Counted from the last beginning at or before each position: of a piece, of the padding, or of a row.
        starts = np.zeros(height * width, dtype=np.int64)
        starts[begin] = begin
        room = np.flatnonzero(filled < width)
        starts[room * width + filled[room]] = room * width + filled[room]
        batch["position_ids"] = np.arange(height * width) - np.maximum.accumulate(starts)
    return {name: torch.from_numpy(values).view(height, width) for name, values in batch.items()}


def document_ids(position_ids: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Which document of its row each position belongs to, from 0; padding at the end counts as one more."""
    return (position_ids == 0).cumsum(dim=-1) - 1


def document_mask(position_ids: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch 1 time time"]:
    """Where attention may look, True for yes: at its own document's earlier positions and itself.

    The shape is that of `scaled_dot_product_attention`'s `attn_mask`, one mask for all heads.
    """
    ids = document_ids(position_ids)
    same = ids[:, None, :, None] == ids[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=ids.device).tril()
