"""What any LightningDataModule of stateful loaders does: three loaders, and the position that a checkpoint keeps."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from llm_data.rows.collate import Ordered, make_batch
from llm_data.rows.loader import StatefulLoader
from llm_data.text.corpora import Split


def refuse_numbers(context: Any, batch_size: Any, num_workers: Any, seed: Any) -> None:
    """Raise a ValueError for settings of rows and loaders that are no whole numbers, or too small."""
    for name, value, least in (
        ("context", context, 2), ("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)
    ):  # fmt: skip
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number and at least {least}")


class RowsDataModule(pl.LightningDataModule):
    """Loaders over the rows of a training, a validation and a test side; where the rows come from is left open.

    The training loader's position travels in Lightning's checkpoints, so a resumed run goes on with the next batch.

    Args:
        batch_size: rows of a batch, for each process.
        num_workers: processes that prepare batches ahead.
        seed: of each epoch's order.
        drop_last: leave out a training epoch's last step when it is not full.
    """

    collate: Any = staticmethod(make_batch)

    def __init__(self, batch_size: int, num_workers: int, seed: int, drop_last: bool) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed, self.drop_last = batch_size, num_workers, seed, drop_last
        self._train_loader: Any = None  # a `StatefulLoader`, or another that knows where it is
        self._position: dict[str, Any] | None = None

    def rows(self, split: Split) -> Ordered:
        """The rows of one side, as the loaders read them; there after `setup`."""
        raise NotImplementedError

    def sides(self) -> list[Split]:
        """The sides that there are."""
        raise NotImplementedError

    def train_dataloader(self) -> Any:
        """Training batches, in a new order each epoch, from where a restored state left off.

        Asked again under a Trainer (`reload_dataloaders_every_n_epochs`, a second `fit`), the new loader goes on where
        the old one is. With `overfit_batches` the order is fixed, and each epoch begins at its first row.
        """
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        loader = self._loader("train", shuffle=not overfit)
        if self._position is not None:
            loader.load_state_dict(self._position)
        elif self.trainer is not None and self._train_loader is not None and loader.continues(self._train_loader):
            loader.load_state_dict(self._train_loader.state_dict())
        self._position, self._train_loader = None, loader
        return loader

    def val_dataloader(self) -> Any:
        """Validation batches, always in the same order; an empty list where there is no such side."""
        return self._loader("val", shuffle=False) if "val" in self.sides() else []

    def test_dataloader(self) -> Any:
        """Test batches, always in the same order; an empty list where there is no such side."""
        return self._loader("test", shuffle=False) if "test" in self.sides() else []

    def state_dict(self) -> dict[str, Any]:
        """ "train", the training loader's position, where there is such a loader; the same on every rank."""
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the position for the training loader: the one that is there, or the next one to be made.

        Raises:
            ValueError: when the rows of the run that saved it were other rows.
        """
        position = state_dict.get("train")
        if self._train_loader is not None and position is not None:
            self._train_loader.load_state_dict(position)
        self._position = position

    def _loader(self, split: Split, shuffle: bool) -> Any:
        # Under tensor parallelism several processes share one rank of the data; Lightning knows which.
        place: dict[str, Any] = {"num_replicas": 1, "rank": 0}
        if self.trainer is not None and self.trainer.distributed_sampler_kwargs is not None:
            place = self.trainer.distributed_sampler_kwargs
        return StatefulLoader(
            self.rows(split), self.batch_size, shuffle=shuffle, seed=self.seed, rank=place["rank"],
            world_size=place["num_replicas"], num_workers=self.num_workers, pin_memory=torch.cuda.is_available(),
            drop_last=self.drop_last and split == "train", collate=self.collate,
        )  # fmt: skip
