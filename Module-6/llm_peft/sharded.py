"""Fine-tuning over several devices: FSDP2, whose checkpoints are one file of the adapter, as those of one device.

The frozen weights are cut over the ranks and gathered block by block. What is trained is small: it is gathered whole
when a checkpoint is written, so that a run may go on with any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_core.store.atomic import AtomicCheckpoints
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(values: Tensor) -> Tensor:
    """A tensor, gathered where it is in shards; every rank calls it."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def here(values: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return values.to_local() if isinstance(values, DTensor) else values


def like(values: Tensor, other: Tensor) -> Tensor:
    """A whole tensor cut as another one is; every rank calls it."""
    if not isinstance(other, DTensor):
        return values
    return distribute_tensor(values.to(other.device), other.device_mesh, other.placements)


class FullyShardAdapter(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with N ranks, and checkpoints that are one file.

    Its own default, `ModelParallelStrategy()`, takes all ranks of a node for tensor parallel and shards nothing.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning hands the optimisers' states to `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the module itself says what it keeps."""
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimiser's state with every average whole."""
        state: dict[str, Any] = getattr(optimizer, "optimizer", optimizer).state_dict()
        averages = {
            place: {name: whole(value) if isinstance(value, Tensor) else value for name, value in each.items()}
            for place, each in state["state"].items()
        }
        return {**state, "state": averages}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """One file, whole or not there, by rank 0."""
        if self.is_global_zero:
            AtomicCheckpoints().save_checkpoint(checkpoint, filepath)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The file, by every rank; the module and `load_optimizer_state_dict` cut what is in it."""
        return AtomicCheckpoints().load_checkpoint(checkpoint_path)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each optimiser its part of the averages."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            cut = {
                place: {
                    name: like(value, parameters[place]) if isinstance(value, Tensor) and value.ndim else value
                    for name, value in each.items()
                }
                for place, each in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": cut})
