"""How documents fill the rows of batches: padded one by one, concatenated and cut, or packed whole.

A plan says for every row which pieces of which documents it holds. It never loses or repeats a token: each token of
each document lies in one piece, each piece in one row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from llm_data.shards.reader import ranges

Packing = Literal["static", "dynamic", "bucketed", "concat", "greedy", "best_fit"]
PACKINGS: tuple[Packing, ...] = get_args(Packing)
MAX_CONTEXT = 2**31 - 1
PADDED: tuple[Packing, ...] = ("static", "dynamic", "bucketed")


@dataclass(frozen=True)
class Rows:
    """Which pieces of documents each row holds. Piece p is `length[p]` tokens of `document[p]` from `start[p]` on;
    row r holds the pieces `first[r]` to `first[r + 1] - 1`, in this order.

    Attributes:
        document, start, length: one entry a piece, int64.
        first: one entry a row and one more, int64.
        context: the most tokens a row may hold.
        packing: how the plan was made.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    first: np.ndarray
    context: int
    packing: Packing

    def __len__(self) -> int:
        """Rows."""
        return len(self.first) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.add.reduceat(self.length, self.first[:-1])

    def pieces(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the pieces of these rows, row by row."""
        return ranges(self.first[rows], self.first[rows + 1] - self.first[rows])


def plan_rows(lengths: np.ndarray, context: int, packing: Packing, seed: int = 0) -> Rows:
    """Lay documents out in rows of at most `context` tokens.

    `static`, `dynamic` and `bucketed` put one piece in a row (they differ in how rows meet in batches). `concat` puts
    the documents end to end and cuts wherever a row is full. `greedy` begins a new row when the next piece does not
    fit (next-fit); `best_fit` takes the longest piece first and puts it where it leaves the least room (best-fit
    decreasing). All but `concat` cut only documents longer than `context`, into pieces of `context` and a rest.

    Args:
        lengths: tokens of each document, all at least 1.
        context: tokens of a row.
        packing: one of `PACKINGS`.
        seed: the documents are laid out in an order drawn with it.

    Raises:
        ValueError: for an unknown packing, a context below 2 or above `MAX_CONTEXT`, or no documents.

    Source: best-fit packing as in Ding et al. 2024 (arXiv:2404.10830), section 3.
    """
    if packing not in PACKINGS:
        raise ValueError(f"packing={packing!r}: choose one of {', '.join(PACKINGS)}")
    if context < 2:
        raise ValueError(f"context={context}: a row needs at least 2 tokens, one to read and one to predict")
    if context > MAX_CONTEXT:
        raise ValueError(f"context={context}: a row has at most {MAX_CONTEXT:,} tokens; lower context")
    if len(lengths) == 0 or lengths.min() < 1:
        raise ValueError("plan_rows needs at least one document, and none of length 0")
    order = np.random.default_rng(seed).permutation(len(lengths))
    sizes = lengths[order].astype(np.int64)
    ends = np.cumsum(sizes)
    if packing == "concat":
        cuts = np.union1d(ends, np.arange(context, ends[-1], context))
        begins = np.concatenate([[0], cuts[:-1]])
        which = np.searchsorted(ends, begins, side="right")
        start = begins - (ends - sizes)[which]
        row = begins // context
        return _rows(order[which], start, cuts - begins, row, context, packing)
    number = -(-sizes // context)  # pieces of each document
    which = np.repeat(np.arange(len(sizes)), number)
    start = ranges(np.zeros_like(number), number) * context
    length = np.minimum(sizes[which] - start, context)
    if packing == "greedy":
        row = next_fit(length, context)
    elif packing == "best_fit":
        row = best_fit(length, context)
    else:
        row = np.arange(len(length))
    return _rows(order[which], start, length, row, context, packing)


def next_fit(lengths: np.ndarray, context: int) -> np.ndarray:
    """The row of each piece when a row is closed as soon as the next piece does not fit into it."""
    ends = np.cumsum(lengths)
    row = np.empty(len(lengths), dtype=np.int64)
    first = count = 0
    while first < len(lengths):
        filled = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, filled + context, side="right"))
        row[first:last] = count
        first, count = last, count + 1
    return row


def best_fit(lengths: np.ndarray, context: int) -> np.ndarray:
    """The row of each piece when, from the longest on, each goes where it leaves the least room.

    `open_rows[room]` holds the rows with that much room left, and `rooms` the rooms there are, in order: no more than
    there are rows, however large `context` is.
    """
    row = np.empty(len(lengths), dtype=np.int64)
    open_rows: dict[int, list[int]] = {}
    rooms: list[int] = []
    count = 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            chosen = open_rows[room].pop()
            if not open_rows[room]:
                del rooms[place], open_rows[room]
        else:
            room, chosen, count = context, count, count + 1
        row[piece] = chosen
        left = room - length
        if left in open_rows:
            open_rows[left].append(chosen)
        elif left:
            open_rows[left] = [chosen]
            insort(rooms, left)
    return row


def padded_slots(rows: Rows, batches: list[np.ndarray]) -> int:
    """Positions that hold no token, over batches of row numbers, each as wide as its packing makes it."""
    lengths = rows.lengths
    tight = rows.packing in ("dynamic", "bucketed")
    slots = sum(len(batch) * int(lengths[batch].max() if tight else rows.context) for batch in batches)
    return slots - sum(int(lengths[batch].sum()) for batch in batches)


def _rows(
    document: np.ndarray, start: np.ndarray, length: np.ndarray, row: np.ndarray, context: int, packing: Packing
) -> Rows:
    by_row = np.argsort(row, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(row))])
    return Rows(document[by_row], start[by_row], length[by_row], first, context, packing)
