"""From rows to the tensors a model takes, in the format of transformers.

Packed rows bring `position_ids` that start again at 0 with every document, and no `attention_mask`: the models of
transformers read the documents' borders from them (with `use_cache=False`; with a cache, their default, they do not
look), and so does the course's own. Padding has position 0 throughout: each of its tokens is a document alone.

Padded rows bring an `attention_mask`. `labels` repeat `input_ids`; the model shifts them. A position whose label is
`IGNORE_INDEX` is no target: padding, and the first token of a piece, which nothing in its own document precedes.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from llm_data.rows.documents import IGNORE_INDEX
from llm_data.rows.packing import Packing
from llm_data.shards.reader import ranges

Batch = dict[str, Tensor]


@runtime_checkable  # for the types that tests check while they run
class Ordered(Protocol):
    """What a loader must know of rows to order them; a `collate` of its own makes the batches."""

    plan: str
    filled: np.ndarray

    @property
    def packing(self) -> Packing: ...
    def __len__(self) -> int: ...


@runtime_checkable
class Table(Protocol):
    """Rows that batches are made of: a `RowTable`, or rows whose targets are chosen one by one.

    `labels` have the shape of `ids`; None where every token but a piece's first is a target.
    """

    context: int
    pad_id: int
    plan: str
    filled: np.ndarray
    ids: np.ndarray
    first: np.ndarray

    @property
    def packing(self) -> Packing: ...
    @property
    def positions(self) -> np.ndarray | None: ...
    @property
    def labels(self) -> np.ndarray | None: ...
    def __len__(self) -> int: ...


def make_batch(table: Table, chosen: np.ndarray) -> Batch:
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
        if table.labels is None:
            labels = ids.copy()
            labels[positions == 0] = IGNORE_INDEX
        else:
            labels = table.labels.take(chosen, axis=0)
        batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
    else:
        filled = table.filled[chosen]
        width = table.context if table.packing == "static" else int(filled.max())
        there = np.arange(width) < filled[:, None]
        ids = np.full(there.shape, table.pad_id, dtype=np.int64)
        place = ranges(table.first[chosen], filled)
        ids[there] = table.ids[place]
        if table.labels is None:
            labels = np.where(there, ids, IGNORE_INDEX)
            labels[:, 0] = IGNORE_INDEX
        else:
            labels = np.full(there.shape, IGNORE_INDEX, dtype=np.int64)
            labels[there] = table.labels[place]
        batch = {"input_ids": ids, "labels": labels, "attention_mask": there.astype(np.int64)}
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def _without_target(table: Table) -> Batch:
    shape = (1, table.context)
    batch = {"input_ids": torch.full(shape, table.pad_id), "labels": torch.full(shape, IGNORE_INDEX)}
    name = "attention_mask" if table.positions is None else "position_ids"
    return {**batch, name: torch.zeros(shape, dtype=torch.long)}
