"""Examples as rows of a batch: packed several to a row, or padded one to a row, with the labels that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llm_data.rows.documents import IGNORE_INDEX
from llm_data.rows.packing import PADDED, Packing, plan_rows
from llm_data.workspace import digest

from llm_peft.chat.records import Example
from llm_peft.chat.template import Encoded

PACKINGS: tuple[Packing, ...] = ("best_fit", "greedy", "static", "dynamic", "bucketed")  # none that cuts an example


@dataclass(frozen=True)
class Cut:
    """What the context left of examples.

    Attributes:
        examples: how many were longer than a row.
        tokens: how many of their last tokens are left out.
    """

    examples: int
    tokens: int


def cut(encoded: Sequence[Encoded], examples: Sequence[Example], context: int) -> tuple[list[Encoded], Cut]:
    """Examples of at most `context` tokens: of longer ones the end is left out.

    Raises:
        ValueError: for an example of which no target would be left.
    """
    kept, longer, lost = [], 0, 0
    for each, example in zip(encoded, examples, strict=True):
        labels = each.labels[:context]
        if all(label == IGNORE_INDEX for label in labels[1:]):
            targets = next(place for place, label in enumerate(each.labels) if label != IGNORE_INDEX)
            wrong = f"{example.place}: its answer begins at token {targets}, beyond context={context}"
            raise ValueError(f"{wrong}; raise context, or shorten what stands before the answer")
        longer += len(each.ids) > context
        lost += max(0, len(each.ids) - context)
        kept.append(Encoded(each.ids[:context], labels))
    return kept, Cut(longer, lost)


class ChatRows:
    """Rows in memory, as `StatefulLoader` reads them.

    Args:
        encoded: examples, none longer than `context`.
        context: tokens of a row.
        packing: one of `PACKINGS`.
        seed: of the layout.
        pad_id: fills up.
    """

    def __init__(
        self, encoded: Sequence[Encoded], context: int, packing: Packing = "best_fit", seed: int = 0, pad_id: int = 0
    ) -> None:
        lengths = np.array([len(each.ids) for each in encoded])
        plan = plan_rows(lengths, context, packing, seed)
        self.packing, self.context, self.pad_id = packing, context, pad_id
        self.filled = plan.lengths
        self.plan = digest([each.ids for each in encoded], [each.labels for each in encoded], context, packing, seed)
        self.first = np.concatenate([[0], np.cumsum(self.filled)])[:-1]
        order = [encoded[document] for document in plan.document]
        ids = np.concatenate([each.ids for each in order]).astype(np.int64)
        # Nothing in its own example comes before the first token: it is no target.
        labels = np.concatenate([[IGNORE_INDEX, *each.labels[1:]] for each in order]).astype(np.int64)
        self.positions: np.ndarray | None = None
        if packing in PADDED:
            self.ids, self.labels = ids, labels
            return
        there = np.arange(context) < self.filled[:, None]
        self.ids = np.full(there.shape, pad_id, dtype=np.int64)
        self.labels, self.positions = np.full_like(self.ids, IGNORE_INDEX), np.zeros_like(self.ids)
        self.ids[there], self.labels[there] = ids, labels
        self.positions[there] = np.concatenate([np.arange(len(each.ids)) for each in order])

    def __len__(self) -> int:
        """Rows."""
        return len(self.filled)

    @property
    def targets(self) -> int:
        """Tokens that are learned, over all rows."""
        return int((self.labels != IGNORE_INDEX).sum())
