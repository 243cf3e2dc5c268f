"""What each rank really holds of weights and optimiser states, against what its strategy promises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.distributed.tensor import DTensor

from llm_scale.collectives import from_all
from llm_scale.trainer.settings import SHARDED, Parallel

# Of Lightning's strategy for both: with its own defaults it shards nothing on one node, and says nothing.
SIZES = {
    "fsdp": "strategy=ModelParallelStrategy(data_parallel_size={0}, tensor_parallel_size=1)",
    "tensor-parallel": "strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size={0})",
}


def local_numbers(tensors: Iterable[Tensor]) -> int:
    """How many numbers of these tensors this rank holds, where some are `DTensor`s."""
    return sum((each.to_local() if isinstance(each, DTensor) else each).numel() for each in tensors)


def most_numbers(shapes: Iterable[tuple[int, ...]], parallel: Parallel) -> int:
    """The most numbers that a rank of a strategy holds of parameters of these shapes.

    `fully_shard` cuts the first dimension, and a rank holds at most its N-th part rounded up. Tensor parallel cuts
    matrices, and leaves the norms.
    """
    size = parallel.ranks if parallel.strategy in SHARDED else 1
    total = 0
    for shape in shapes:
        cut = size if parallel.strategy != "tensor-parallel" or len(shape) > 1 else 1
        if parallel.strategy == "fsdp1":  # cuts all numbers of a block as one row
            shape = (math.prod(shape),)
        total += -(-shape[0] // cut) * math.prod(shape[1:])
    return total


class Shares(pl.Callback):
    """Measures each rank's share of the weights when training begins, and of the optimiser's states after a step: its
    numbers over those of the whole, which are its bytes over the whole's bytes.

    Attributes:
        weights, states: the share of each rank, from 0 to 1.

    Raises:
        ValueError: when a rank holds more than its strategy leaves it.
    """

    def __init__(self, parallel: Parallel) -> None:
        self.parallel = parallel
        self.weights, self.states = list[float](), list[float]()
        self._numbers = self._most = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Count the parameters while they are whole."""
        if not self._numbers:
            shapes = [tuple(parameter.shape) for parameter in pl_module.parameters()]
            self._numbers = sum(map(math.prod, shapes))
            self._most = most_numbers(shapes, self.parallel)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.weights = from_all(local_numbers(pl_module.parameters()) / self._numbers)
        self._refuse("weights", self.weights, self._most / self._numbers)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        (optimizer,) = trainer.optimizers
        if self.states or not optimizer.state:
            return
        averages = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        of_each = len(averages) / len(optimizer.state)  # AdamW keeps two of each weight
        self.states = from_all(local_numbers(averages) / of_each / self._numbers)
        self._refuse("optimiser states", self.states, self._most / self._numbers)

    def _refuse(self, what: str, shares: list[float], most: float) -> None:
        if max(shares) <= most * (1 + 1e-9):  # both are quotients of whole numbers
            return
        ranks, strategy = self.parallel.ranks, self.parallel.strategy
        wrong = f"rank {shares.index(max(shares))} of {ranks} holds {max(shares):.1%} of the {what}"
        advice = SIZES.get(strategy, "the strategy of `make_strategy`").format(ranks)
        raise ValueError(f"{wrong}, and strategy={strategy} leaves it {most:.1%}; give the Trainer {advice}")


def zero_numbers(shapes: Sequence[tuple[int, ...]], parallel: Parallel) -> tuple[int, int]:
    """The most numbers that a rank of DeepSpeed holds of the weights, and of one of AdamW's averages.

    Stage 3 cuts the numbers of each parameter as one row. Below it the weights are whole, and the averages of all that
    decay are one row, and those of all others a second; their parts are even numbers.
    """
    ranks = parallel.ranks
    if parallel.zero_stage == 3:
        most = sum(-(-math.prod(shape) // ranks) for shape in shapes)
        return most, most
    groups = [sum(math.prod(shape) for shape in shapes if (len(shape) > 1) == decays) for decays in (True, False)]
    return sum(groups), sum(2 * -(-group // (2 * ranks)) for group in groups)


class ZeroShares(Shares):
    """Of DeepSpeed, whose stages cut states and weights apart. Stage 3 keeps a rank's part of a weight beside it, and
    some weights whole too from their first use on: they are counted after a step."""

    _most_weights = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not self._numbers:
            shapes = [tuple(parameter.shape) for parameter in pl_module.parameters()]
            super().setup(trainer, pl_module, stage)
            self._most_weights, self._most = zero_numbers(shapes, self.parallel)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pass

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if not self.weights:
            whole = list(pl_module.parameters())
            parts = [each.ds_tensor for each in whole if hasattr(each, "ds_tensor")]
            self.weights = from_all(local_numbers([*whole, *parts]) / self._numbers)
            self._refuse("weights", self.weights, self._most_weights / self._numbers)
        super().on_train_batch_end(trainer, pl_module)


def make_shares(parallel: Parallel) -> Shares:
    """The check for a run's strategy."""
    return ZeroShares(parallel) if parallel.strategy == "deepspeed" else Shares(parallel)
