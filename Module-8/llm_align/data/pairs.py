"""Pairs of answers as batches: the preferred ones first, the others behind them, filled up on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llm_data.rows.collate import Batch
from llm_data.rows.module import RowsDataModule, refuse_numbers
from llm_data.rows.packing import Packing
from llm_data.text.corpora import Split
from llm_data.tokenizers.fast import vocab_size
from llm_data.workspace import digest
from llm_peft.chat.datamodule import SPLITS, part
from transformers import PreTrainedTokenizerFast

from llm_align.data.records import Pair, read_pairs

LONGER = ("refuse", "leave_out")


class PairRows:
    """Pairs in memory, as `StatefulLoader` orders them.

    Args:
        pairs: at least one.
        pad_id: fills up; nobody looks at it.
    """

    packing: Packing = "dynamic"  # a batch is as long as its longest row

    def __init__(self, pairs: Sequence[Pair], pad_id: int = 0) -> None:
        self.pairs, self.pad_id = list(pairs), pad_id
        self.filled = np.array([longest(pair) for pair in self.pairs])
        self.plan = digest([[pair.prompt.ids, pair.chosen, pair.rejected] for pair in self.pairs])

    def __len__(self) -> int:
        """Pairs."""
        return len(self.pairs)


def longest(pair: Pair) -> int:
    """Tokens of a pair's longer side, prompt and answer."""
    return len(pair.prompt.ids) + max(len(pair.chosen), len(pair.rejected))


def pair_batch(rows: PairRows, chosen: np.ndarray) -> Batch:
    """The batch of some pairs.

    Returns:
        `input_ids` (2 pairs, time), the preferred answers in the first half, each behind its prompt;
        `prompt_lengths` and `lengths` (2 pairs,), of the prompt and of both. No pair at all gives rows without an
        answer, for a rank that is left without rows at an epoch's end.
    """
    pairs = [rows.pairs[int(number)] for number in chosen]
    sides = [(pair.prompt.ids, pair.chosen) for pair in pairs] + [(pair.prompt.ids, pair.rejected) for pair in pairs]
    return padded(sides or [((rows.pad_id,), ())] * 2, rows.pad_id)


def padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Batch:
    """Prompts with their answers behind them: `input_ids` (rows, time), `prompt_lengths` and `lengths` (rows,)."""
    lengths = [len(prompt) + len(answer) for prompt, answer in rows]
    ids = torch.full((len(rows), max(lengths)), pad_id)
    for place, (prompt, answer) in enumerate(rows):
        ids[place, : lengths[place]] = torch.tensor([*prompt, *answer])
    prompts = torch.tensor([len(prompt) for prompt, _ in rows])
    return {"input_ids": ids, "prompt_lengths": prompts, "lengths": torch.tensor(lengths)}


class PairsDataModule(RowsDataModule):
    """Batches of pairs of answers.

    Args:
        train: a `.jsonl` file of pairs, see `llm_align.data.records`.
        val: another to validate on; None validates on `val_percent` of the first, drawn with the seed.
        context: the most tokens of a prompt with an answer. None is cut: an answer without its end is another answer.
        batch_size: pairs of a batch, for each process.
        val_percent: share of the pairs, where no file of their own is given.
        num_workers: processes that prepare batches ahead; pairs in memory need none.
        seed: of each epoch's order.
        drop_last: leave out a training epoch's last step when it is not full.
        longer: what becomes of a pair of more than `context` tokens: "refuse", or "leave_out", counted in `left_out`.

    Raises:
        ValueError: for numbers that cannot be, and in `setup` for pairs that are none.
    """

    collate: Any = staticmethod(pair_batch)

    def __init__(
        self, train: str, val: str | None = None, context: int = 512, batch_size: int = 4, val_percent: float = 5.0,
        num_workers: int = 0, seed: int = 0, drop_last: bool = False, longer: str = "refuse",
    ) -> None:  # fmt: skip
        refuse_numbers(context, batch_size, num_workers, seed)
        if longer not in LONGER:
            raise ValueError(f"longer={longer!r} is none of {', '.join(LONGER)}")
        if not 0 < val_percent < 100:
            raise ValueError(f"val_percent={val_percent} must be above 0 and below 100")
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.train, self.val, self.context, self.val_percent = train, val, context, val_percent
        self.longer, self.left_out = longer, 0
        self.tokenizer: PreTrainedTokenizerFast | None = None  # of the model; set before `setup`
        self._rows = dict[Split, PairRows]()

    def setup(self, stage: str | None = None) -> None:
        """Read the pairs.

        Raises:
            RuntimeError: when the tokenizer is not set.
        """
        if self._rows:
            return
        if self.tokenizer is None:
            raise RuntimeError("the data needs the model's tokenizer; set data.tokenizer before setup()")
        pairs = read_pairs(self.train, self.tokenizer)
        if self.val is None:
            sides = part(pairs, self.val_percent, self.seed, "pairs")
        else:
            sides = pairs, read_pairs(self.val, self.tokenizer)
        for split, side in zip(SPLITS, sides, strict=True):
            kept = [pair for pair in side if longest(pair) <= self.context]
            if len(kept) < len(side) and (self.longer == "refuse" or not kept):
                wrong = f"a pair of {split} has {max(map(longest, side))} tokens, more than context={self.context}"
                raise ValueError(f"{wrong}; raise context, or set longer=leave_out")
            self.left_out += len(side) - len(kept)
            self._rows[split] = PairRows(kept, self.tokenizer.pad_token_id or 0)

    def rows(self, split: Split) -> PairRows:
        """The pairs of one side; there after `setup`."""
        if split not in self._rows:
            raise RuntimeError(f"the {split} pairs are not there; call setup() first")
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
        return f"PairsDataModule({Path(self.train).name!r}, context={self.context}, batch_size={self.batch_size})"
