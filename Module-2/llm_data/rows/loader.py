"""A loader that knows where it is: stopped after any batch and restored, it goes on with the next one.

An epoch is one order of all rows, drawn from the seed and the epoch's number alone. The loader's whole state is how
many rows of it were handed out. Each step takes the next rows and divides them among the ranks: no row goes to two of
them, and when their number changes, what is left is divided among the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from llm_data.errors import one_line
from llm_data.rows.collate import Batch, Ordered, make_batch
from llm_data.tokenizers.parallelism import tokenizers_in_one_thread
from llm_data.workspace import digest

BUCKET_BATCHES = 50  # rows are sorted by length within so many batches


class StatefulLoader:
    """Batches of one rank, epoch after epoch.

    A shuffling loader keeps its position: a new `iter()` begins an epoch when the loader is new or the last epoch was
    finished, and goes on with the next batch after a `break`, since nothing is to be shown twice. A loader that does
    not shuffle, as for validation, begins at its first row every time (after `load_state_dict`, once where it was).

    All ranks take the same number of steps, and an epoch's last rows are shared out so that each rank has at least one.
    Only where that cannot be (`batch_size=1`, or fewer rows than ranks) a rank yields one row of padding without a
    target; the mean loss of transformers' models is NaN for it, so weight losses by their number of targets.

    Args:
        table: all rows.
        batch_size: rows of a batch, for each rank.
        shuffle: draw a new order each epoch; otherwise the plan's own.
        seed: of the orders.
        rank, world_size: this process among those that share the work.
        num_workers: processes that prepare batches ahead; 0 prepares them here.
        pin_memory: put batches in page-locked memory, from which copies to a GPU can overlap with its work.
        drop_last: leave out an epoch's last step when it is not full (those rows come again in other epochs' orders).
        collate: makes the batch of some rows; of none one without a target.

    Raises:
        ValueError: for numbers out of range, and when `drop_last` leaves no step at all.
    """

    def __init__(
        self,
        table: Ordered,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        drop_last: bool = False,
        collate: Callable[[Any, np.ndarray], Batch] = make_batch,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size={batch_size} must be at least 1, num_workers={num_workers} at least 0")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not one of world_size={world_size} ranks, counted from 0")
        if drop_last and len(table) < batch_size * world_size:
            raise ValueError(
                f"drop_last leaves nothing: {len(table)} rows are fewer than one step's {batch_size} x {world_size}; "
                "lower batch_size, or pass drop_last=False"
            )
        self.table = table
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.drop_last = drop_last
        self.collate = collate
        self.epoch = 0
        self.rows_done = 0  # of this epoch, over all ranks
        self.steps_done = 0  # of this epoch, whatever the number of ranks was
        self._restored = False
        bucket = batch_size if table.packing == "bucketed" else None  # only there does it change the order
        self._plan = digest(table.plan, shuffle, seed, bucket)

    def __len__(self) -> int:
        """Steps of this epoch: those taken, and those that the rows left make at this batch size and world size."""
        return self.steps_done + self._steps_left()

    def __iter__(self) -> Iterator[Batch]:
        if not self.shuffle and not self._restored:
            self.rows_done = self.steps_done = 0
        self._restored = False
        for batch in self._batches(self._shares(self.order(self.epoch))):
            # Counted before the batch leaves: who holds batch k and asks for the state gets the one after k.
            self.rows_done += self._step_rows(len(self.table) - self.rows_done)
            self.steps_done += 1
            if not self._steps_left():
                self._next_epoch()
            yield batch

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of all rows, in the order of one epoch. It does not depend on ranks or workers."""
        number = len(self.table)
        if not self.shuffle:
            return np.arange(number)
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(number)
        if self.table.packing != "bucketed":
            return order
        lengths = self.table.filled
        window = BUCKET_BATCHES * self.batch_size
        batches: list[np.ndarray] = []
        for start in range(0, number, window):
            rows = order[start : start + window]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            batches += [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]
        # The one batch that may be short stays last: anywhere else it would shift the borders of all after it.
        last = batches.pop()
        return np.concatenate([*(batches[number] for number in random.permutation(len(batches))), last])

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: the same on every rank, and valid for any number of ranks and workers."""
        return {"epoch": self.epoch, "rows": self.rows_done, "steps": self.steps_done, "plan": self._plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loader was that gave this state.

        Raises:
            ValueError: when the state is of other data: corpus, tokenizer, context, packing, seed, or, with bucketed
                padding, batch size. Its rows would be other rows.
        """
        missing = {"epoch", "rows", "steps", "plan"} - set(state)
        if missing:
            raise ValueError(
                f"this is no loader's state: {', '.join(sorted(missing))} missing; pass what state_dict() gave"
            )
        if state["plan"] != self._plan:
            raise ValueError(
                "this state belongs to other rows: corpus, tokenizer, context, packing and seed must be those of the "
                "run that saved it (and with packing='bucketed' batch_size too)"
            )
        for name, most in (("epoch", 2**63), ("rows", len(self.table)), ("steps", 2**63)):
            value = state[name]
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise ValueError(f"this is no loader's state: {name}={value!r}; pass what state_dict() gave")
        self.epoch, self.rows_done, self.steps_done = state["epoch"], state["rows"], state["steps"]
        if not self._steps_left():  # more ranks than before, and drop_last: what is left fills no step
            self._next_epoch()
        self._restored = True

    def continues(self, other: StatefulLoader) -> bool:
        """Whether the other loader's position means the same rows here."""
        return self._plan == other._plan

    def _next_epoch(self) -> None:
        self.epoch, self.rows_done, self.steps_done = self.epoch + 1, 0, 0

    def _steps_left(self) -> int:
        left = len(self.table) - self.rows_done
        step = self.batch_size * self.world_size
        return left // step if self.drop_last else -(-left // step)

    def _step_rows(self, left: int) -> int:
        """Rows of the next step, over all ranks, when so many are left."""
        step = self.batch_size * self.world_size
        if step < left < step + self.world_size and self.batch_size > 1 and not self.drop_last:
            return left - self.world_size  # a full step would leave less than one row for each rank
        return min(step, left)

    def _shares(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """This rank's rows of each step that is left."""
        start = self.rows_done
        for _ in range(self._steps_left()):
            rows = self._step_rows(len(order) - start)
            if rows == self.batch_size * self.world_size:
                first = start + self.rank * self.batch_size
                yield order[first : first + self.batch_size]
            else:
                yield np.array_split(order[start : start + rows], self.world_size)[self.rank]
            start += rows

    def _batches(self, shares: Iterator[np.ndarray]) -> Iterator[Batch]:
        if not self.num_workers:
            for share in shares:
                batch = self.collate(self.table, share)
                yield {name: values.pin_memory() for name, values in batch.items()} if self.pin_memory else batch
            return
        # A generator of its own: the workers' seeds must not be drawn from the one that the model's dropout uses.
        loader = DataLoader(
            RowDataset(self.table, self.collate),
            sampler=shares,  # with batch_size=None an index may be anything: a batch's rows
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(self.seed),
        )
        with tokenizers_in_one_thread():  # the workers start here
            batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker (pid"):
                    raise  # by a worker that lives
                raise RuntimeError(
                    f"a worker process of num_workers={self.num_workers} died ({one_line(error)}); memory is the usual "
                    "reason: lower num_workers (0 needs no process of its own) or batch_size"
                ) from None
            yield batch


class RowDataset(Dataset[Batch]):
    """Batches by the numbers of their rows, for the worker processes of a DataLoader."""

    def __init__(self, table: Ordered, collate: Callable[[Any, np.ndarray], Batch] = make_batch) -> None:
        self.table, self.collate = table, collate

    def __getitem__(self, chosen: np.ndarray) -> Batch:
        return self.collate(self.table, chosen)
