"""Prompts that a policy answers by itself, and is taught by what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from llm_data.rows.module import RowsDataModule, refuse_numbers
from llm_data.text.corpora import Split
from llm_data.tokenizers.fast import vocab_size
from llm_peft.chat.datamodule import SPLITS, part
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llm_align.data.records import Prompt, read_prompts
from llm_align.data.rounds import Rounds


class PromptsDataModule(RowsDataModule):
    """Rounds of prompts for a module that writes its own answers.

    Args:
        train: a `.jsonl` file of prompts, see `llm_align.data.records`.
        val: another to validate on; None validates on `val_percent` of the first, drawn with the seed.
        context: the most tokens of a prompt with an answer.
        prompts_per_round: prompts that are answered before the next step, over all devices.
        batch_size: answers of a batch, for each device; a round is learned in as many batches as it takes.
        passes: how often the answers of a round are learned from.
        val_percent: share of the prompts, where no file of their own is given.
        seed: of the order, and of the answers.

    Raises:
        ValueError: for numbers that cannot be, and in `setup` for prompts that are none.
    """

    def __init__(
        self, train: str, val: str | None = None, context: int = 512, prompts_per_round: int = 8, batch_size: int = 16,
        passes: int = 1, val_percent: float = 5.0, seed: int = 0,
    ) -> None:  # fmt: skip
        refuse_numbers(context, batch_size, 0, seed)
        for name, value in (("prompts_per_round", prompts_per_round), ("passes", passes)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number and at least 1")
        if not 0 < val_percent < 100:
            raise ValueError(f"val_percent={val_percent} must be above 0 and below 100")
        super().__init__(batch_size, 0, seed, drop_last=True)
        self.train, self.val, self.context, self.val_percent = train, val, context, val_percent
        self.prompts_per_round, self.passes = prompts_per_round, passes
        self.tokenizer: PreTrainedTokenizerFast | None = None  # of the model; set before `setup`
        self.prompts = dict[Split, list[Prompt]]()

    def setup(self, stage: str | None = None) -> None:
        """Read the prompts.

        Raises:
            RuntimeError: when the tokenizer is not set.
        """
        if self.prompts:
            return
        if self.tokenizer is None:
            raise RuntimeError("the data needs the model's tokenizer; set data.tokenizer before setup()")
        prompts = read_prompts(self.train, self.tokenizer)
        if self.val is None:
            sides = part(prompts, self.val_percent, self.seed, "prompts")
        else:
            sides = prompts, read_prompts(self.val, self.tokenizer)
        for split, side in zip(SPLITS, sides, strict=True):
            if (longest := max(len(each.ids) for each in side)) >= self.context:
                wrong = f"a prompt of {split} has {longest} tokens, and context={self.context} leaves no room behind it"
                raise ValueError(f"{wrong}; raise context, or leave the prompt out")
            self.prompts[split] = side

    def sides(self) -> list[Split]:
        """Training and validation."""
        return list(SPLITS)

    def _loader(self, split: Split, shuffle: bool) -> Any:
        place: dict[str, Any] = {"num_replicas": 1, "rank": 0}
        if self.trainer is not None and self.trainer.distributed_sampler_kwargs is not None:
            place = self.trainer.distributed_sampler_kwargs
        rank, ranks = place["rank"], place["num_replicas"]
        if split == "val":
            return Numbers(len(self.prompts["val"]), self.prompts_per_round, rank, ranks)
        if self.trainer is None:
            raise RuntimeError("the answers are written by the module of a Trainer; pass this data to its fit()")
        module: Any = self.trainer.lightning_module
        if not hasattr(module, "make_round"):
            raise ValueError(f"{type(module).__name__} writes no answers; take GRPOModule or PPOModule")
        rounds = Rounds(
            self.prompts["train"], module.make_round, prompts_per_round=self.prompts_per_round,
            group=module.policy.group, batch_size=self.batch_size, passes=self.passes, seed=self.seed, rank=rank,
            world_size=ranks,
        )  # fmt: skip
        batches = self.trainer.accumulate_grad_batches
        if rounds.batches_per_round % batches:
            wrong = f"a round has {rounds.batches_per_round} batches, and a step accumulate_grad_batches={batches}"
            raise ValueError(f"{wrong}: a step would mix two rounds; choose numbers that divide each other")
        return rounds

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that a batch can hold."""
        assert self.tokenizer is not None
        return vocab_size(self.tokenizer)

    def __str__(self) -> str:
        name, per_round = Path(self.train).name, self.prompts_per_round
        return f"PromptsDataModule({name!r}, prompts_per_round={per_round}, batch_size={self.batch_size})"


class Numbers:
    """The places of validation prompts in batches, equally many on every rank; a rank's last may be empty."""

    def __init__(self, number: int, batch: int, rank: int, ranks: int) -> None:
        mine, most = list(range(rank, number, ranks)), -(-number // ranks)
        self.batches = [mine[first : first + batch] for first in range(0, most, batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for each in self.batches:
            yield {"numbers": torch.tensor(each, dtype=torch.long)}
