"""Rounds: answers are written, and learned in batches; the next round is written by what was learned.

The loader knows where it is, also inside a round: what was written is part of its state, so that a run that was killed
goes on with the batches that it would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from llm_data.rows.collate import Batch
from llm_data.workspace import digest

from llm_align.data.records import Prompt

# Prompts of this rank and the seed of each one's first answer, to tensors with a row for each answer.
MakeRound = Callable[[Sequence[Prompt], Sequence[int]], Batch]


class Rounds:
    """Batches of one rank, round after round, epoch after epoch; an epoch is one order of all prompts.

    Prompts at an epoch's end that fill no round come again in other epochs' orders. The answers do not depend on the
    number of ranks.

    Args:
        prompts: all of them.
        make: writes the answers to some prompts and gives what is learned from them; called when every step of the
            round before was taken.
        prompts_per_round: over all ranks.
        group: answers to each prompt.
        batch_size: answers of a batch, for each rank.
        passes: how often the answers of a round are learned from.
        seed: of the orders, and of the answers.
        rank, world_size: this process among those that share the work.

    Raises:
        ValueError: for numbers that do not divide each other.
    """

    def __init__(
        self, prompts: Sequence[Prompt], make: MakeRound, *, prompts_per_round: int, group: int, batch_size: int,
        passes: int = 1, seed: int = 0, rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        answers = prompts_per_round * group // world_size
        if prompts_per_round % world_size or answers % batch_size:
            wrong = f"prompts_per_round={prompts_per_round} x group={group} answers"
            raise ValueError(
                f"{wrong} do not give {world_size} ranks whole prompts and batches of batch_size={batch_size}; choose "
                "numbers that divide each other"
            )
        if len(prompts) < prompts_per_round:
            raise ValueError(f"{len(prompts)} prompts are less than a round of {prompts_per_round}; give more")
        self.prompts, self.make = prompts, make
        self.prompts_per_round, self.group, self.batch_size, self.passes = prompts_per_round, group, batch_size, passes
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.answers = answers
        self.epoch = self.steps_done = 0
        self._now: Batch | None = None  # of the round that is being learned
        self._plan = digest([prompt.ids for prompt in prompts], prompts_per_round, group, batch_size, passes, seed)

    @property
    def batches_per_round(self) -> int:
        """Of each rank."""
        return self.passes * self.answers // self.batch_size

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.prompts) // self.prompts_per_round * self.batches_per_round

    def __iter__(self) -> Iterator[Batch]:
        while True:
            round_number, place = divmod(self.steps_done, self.batches_per_round)
            if self._now is None:
                self._now = self.make(*self._share(round_number))
            batch = self._batch(self._now, round_number, place)
            # Counted before the batch leaves: who holds batch k and asks for the state gets the one after k.
            self.steps_done += 1
            if place + 1 == self.batches_per_round:
                self._now = None
            ended = self.steps_done == len(self)
            if ended:
                self.epoch, self.steps_done = self.epoch + 1, 0
            yield batch
            if ended:
                return

    def _share(self, round_number: int) -> tuple[list[Prompt], list[int]]:
        """This rank's prompts of a round, and the seeds of their answers."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.prompts))
        whole = order[round_number * self.prompts_per_round :][: self.prompts_per_round].tolist()
        share = len(whole) // self.world_size
        first = (self.epoch * len(order) + round_number * self.prompts_per_round) * self.group
        places = range(self.rank * share, (self.rank + 1) * share)
        return [self.prompts[whole[place]] for place in places], [first + place * self.group for place in places]

    def _batch(self, rows: Batch, round_number: int, place: int) -> Batch:
        turn, place = divmod(place, self.answers // self.batch_size)
        random = np.random.default_rng([self.seed, self.epoch, round_number, turn])
        chosen = random.permutation(self.answers)[place * self.batch_size :][: self.batch_size]
        rows = {name: values[torch.from_numpy(chosen).to(values.device)] for name, values in rows.items()}
        longest = int(rows["lengths"].max())
        return {
            name: values[:, : longest - (values.shape[1] < rows["input_ids"].shape[1])] if values.ndim == 2 else values
            for name, values in rows.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, with what every rank has of a round that is not at its end."""
        now: list[Any] = [None if self._now is None else {name: each.cpu() for name, each in self._now.items()}]
        if self.world_size > 1 and self._now is not None:
            mine, now = now[0], [None] * self.world_size
            torch.distributed.all_gather_object(now, mine)
        return {"epoch": self.epoch, "steps": self.steps_done, "plan": self._plan, "round": now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loader was that gave this state.

        Raises:
            ValueError: when it is none, or of other prompts or sizes; inside a round also for other ranks.
        """
        if {"epoch", "steps", "plan", "round"} - set(state):
            raise ValueError("this is no state of a run that writes its answers; pass what state_dict() gave")
        if state["plan"] != self._plan:
            raise ValueError(
                "this state belongs to other prompts or sizes: prompts, prompts_per_round, group, batch_size, passes "
                "and seed must be those of the run that saved it"
            )
        inside = state["steps"] % self.batches_per_round != 0
        if inside and len(state["round"]) != self.world_size:
            wrong = f"the run stopped inside a round of {len(state['round'])} ranks, and there are {self.world_size}"
            raise ValueError(f"{wrong}; go on with as many")
        self.epoch, self.steps_done = state["epoch"], state["steps"]
        self._now = state["round"][self.rank] if inside else None

    def continues(self, other: Rounds) -> bool:
        """Whether the other loader's position means the same batches here."""
        return self._plan == other._plan
