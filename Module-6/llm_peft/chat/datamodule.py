"""`ChatDataModule`: a file of examples as batches whose labels are the answers alone."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from llm_data.rows.module import RowsDataModule, refuse_numbers
from llm_data.rows.packing import Packing
from llm_data.text.corpora import Split
from llm_data.tokenizers.fast import vocab_size
from transformers import PreTrainedTokenizerBase

from llm_peft.chat.records import read_examples
from llm_peft.chat.rows import PACKINGS, ChatRows, Cut, cut
from llm_peft.chat.template import encode

SPLITS: tuple[Split, ...] = ("train", "val")
T = TypeVar("T")


class ChatDataModule(RowsDataModule):
    """Batches of instruction data for a causal language model.

    Args:
        train: a `.jsonl` file of examples, see `llm_peft.chat.records`.
        val: another to validate on; None validates on `val_percent` of the first, drawn with the seed.
        context: the most tokens of a row; an example that is longer loses its end.
        batch_size: rows of a batch, for each process.
        packing: "best_fit" and "greedy" put several examples into a row, none sees another; "static", "dynamic" and
            "bucketed" one, filled up.
        val_percent: share of the examples, where no file of their own is given.
        num_workers: processes that prepare batches ahead; rows in memory need none.
        seed: of the layout and of each epoch's order.
        drop_last: leave out a training epoch's last step when it is not full.

    Raises:
        ValueError: for numbers and names that cannot be, and in `setup` for examples that are none.
    """

    def __init__(
        self, train: str, val: str | None = None, context: int = 512, batch_size: int = 4,
        packing: Packing = "best_fit", val_percent: float = 5.0, num_workers: int = 0, seed: int = 0,
        drop_last: bool = False,
    ) -> None:  # fmt: skip
        if packing not in PACKINGS:
            raise ValueError(f"packing={packing!r}: choose one of {', '.join(PACKINGS)}")
        refuse_numbers(context, batch_size, num_workers, seed)
        if not 0 < val_percent < 100:
            raise ValueError(f"val_percent={val_percent} must be above 0 and below 100")
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.train, self.val, self.context, self.packing, self.val_percent = train, val, context, packing, val_percent
        self.tokenizer: PreTrainedTokenizerBase | None = None  # of the model; set before `setup`
        self.cut = dict[Split, Cut]()
        self._rows = dict[Split, ChatRows]()

    def setup(self, stage: str | None = None) -> None:
        """Read the examples and lay them out.

        Raises:
            RuntimeError: when the tokenizer is not set.
        """
        if self._rows:
            return
        if self.tokenizer is None:
            raise RuntimeError("the data needs the model's tokenizer; set data.tokenizer before setup()")
        examples = {"train": read_examples(self.train)}
        if self.val is not None:
            examples["val"] = read_examples(self.val)
        else:
            examples = dict(zip(SPLITS, part(examples["train"], self.val_percent, self.seed), strict=True))
        for split in SPLITS:
            encoded = [encode(each, self.tokenizer) for each in examples[split]]
            kept, self.cut[split] = cut(encoded, examples[split], self.context)
            pad_id = self.tokenizer.pad_token_id or 0  # no target, and nobody looks at it: any token will do
            self._rows[split] = ChatRows(kept, self.context, self.packing, self.seed, pad_id)

    def rows(self, split: Split) -> ChatRows:
        """The rows of one side; there after `setup`."""
        if split not in self._rows:
            raise RuntimeError(f"the {split} rows are not there; call setup() first")
        return self._rows[split]

    def sides(self) -> list[Split]:
        """Training and validation."""
        return list(SPLITS)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that a batch can hold."""
        assert self.tokenizer is not None
        return vocab_size(self.tokenizer)

    def __str__(self) -> str:
        return f"ChatDataModule({str(Path(self.train).name)!r}, context={self.context}, batch_size={self.batch_size})"


def part(items: list[T], percent: float, seed: int, kind: str = "examples") -> tuple[list[T], list[T]]:
    """Training and validation items, the second drawn with the seed.

    Raises:
        ValueError: when none would be left to train on.
    """
    number = max(1, round(len(items) * percent / 100))
    if number >= len(items):
        raise ValueError(f"{len(items)} {kind} leave none to train on; give more, or a file for val")
    chosen = set(np.random.default_rng(seed).permutation(len(items))[:number].tolist())
    sides: tuple[list[T], list[T]] = ([], [])
    for place, item in enumerate(items):
        sides[place in chosen].append(item)
    return sides
