"""Packing and the resumable order, one thought a function: what a reader can hold in the head, and what the fast forms
beside it are tested against (`packing`, `table` and `collate`, `loader`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llm_data.rows.documents import IGNORE_INDEX


def next_fit_naive(lengths: Sequence[int], context: int) -> list[int]:
    """The row of each piece; a row is closed as soon as the next piece does not fit into it."""
    row, number, room = [], -1, 0
    for length in lengths:
        if length > room:
            number, room = number + 1, context
        room -= length
        row.append(number)
    return row


def best_fit_naive(lengths: Sequence[int], context: int) -> list[int]:
    """The row of each piece; from the longest on, each goes where it leaves the least room, all rows looked at."""
    rooms: list[int] = []
    row = [-1] * len(lengths)
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        fitting = [number for number, room in enumerate(rooms) if room >= lengths[piece]]
        if not fitting:
            fitting = [len(rooms)]
            rooms.append(context)
        best = min(fitting, key=lambda number: rooms[number])
        rooms[best] -= lengths[piece]
        row[piece] = best
    return row


def packed_row(pieces: Sequence[Sequence[int]], context: int, pad_id: int) -> dict[str, list[int]]:
    """A row as the models take it: ids, labels that repeat them, and positions that begin anew with each piece.

    Args:
        pieces: token ids that together fit into the row.
        context: tokens of the row.
        pad_id: fills it up.
    """
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for piece in pieces:
        ids += piece
        labels += [IGNORE_INDEX, *piece[1:]]
        positions += range(len(piece))
    rest = context - len(ids)
    return {
        "input_ids": ids + [pad_id] * rest,
        "labels": labels + [IGNORE_INDEX] * rest,
        "position_ids": positions + [0] * rest,
    }


class StatefulSampler:
    """The numbers of rows in each batch of one rank, epoch after epoch; it knows how many rows are handed out.

    `StatefulLoader` gives the same rows, but where an epoch's last step would leave a rank without one.

    Args:
        number: rows of an epoch.
        batch_size: rows of a batch, for each rank.
        seed: of the epochs' orders.
        rank, world_size: this process among those that share the work.
    """

    def __init__(self, number: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.number, self.batch_size, self.seed = number, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.rows_done = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.number)
        while self.rows_done < self.number:
            step = order[self.rows_done : self.rows_done + self.batch_size * self.world_size]
            self.rows_done += len(step)
            last = self.rows_done == self.number
            if last:
                self.epoch, self.rows_done = self.epoch + 1, 0
            yield np.array_split(step, self.world_size)[self.rank]
            if last:
                return

    def state_dict(self) -> dict[str, int]:
        """Where it is: the same on every rank."""
        return {"epoch": self.epoch, "rows": self.rows_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the first row that was not handed out."""
        self.epoch, self.rows_done = state["epoch"], state["rows"]
