"""A cache whose room is taken once: a new token is written into it, and nothing that was there is copied.

`llm_core.model.KeyValueCache` joins old and new keys anew at each step, which copies everything that is kept.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from llm_core.config import GPTConfig
from llm_core.model import KeyValueCache
from torch import Tensor


class PreallocatedCache(KeyValueCache):
    """Keys and values of up to `max_len` positions, for `GPT` to extend as it extends a `KeyValueCache`.

    Args:
        config: of the model.
        batch: rows.
        max_len: positions that there is room for.
        dtype: of the numbers, the model's.
        device: where they are, the model's.
    """

    def __init__(
        self, config: GPTConfig, batch: int, max_len: int, dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__()
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, max_len, config.head_dim)
        self.room = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * config.num_hidden_layers

    def __len__(self) -> int:
        return self.lengths[0]

    def extend(
        self, layer: int, keys: Float[Tensor, "batch heads new dim"], values: Float[Tensor, "batch heads new dim"]
    ) -> tuple[Tensor, Tensor]:
        """Write the new positions of a layer behind those it has, and give a view of all of them.

        Raises:
            ValueError: when there is no room for them.
        """
        begin = self.lengths[layer]
        end = begin + keys.shape[2]
        if end > self.room.shape[4]:
            raise ValueError(f"{end} positions, and the cache has room for {self.room.shape[4]}; take a larger max_len")
        self.room[layer, 0, :, :, begin:end] = keys
        self.room[layer, 1, :, :, begin:end] = values
        self.lengths[layer] = end
        return self.room[layer, 0, :, :, :end], self.room[layer, 1, :, :, :end]

    def crop(self, length: int) -> None:
        """Forget the positions from `length` on: what was guessed and not accepted."""
        self.lengths = [min(length, each) for each in self.lengths]
