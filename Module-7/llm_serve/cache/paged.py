"""Keys and values in blocks: written where a block table says, and gathered from there for attention.

Shapes: L layers, N blocks, P positions in a block, K heads of keys, H of queries, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from llm_core.config import GPTConfig
from torch import Tensor
from torch.nn import functional as F

from llm_serve.quantization.fp8 import FP8
from llm_serve.quantization.kv_cache import (
    SCALE,
    KVFormat,
    QuantizedVectors,
    check_format,
    dequantize_vectors,
    quantize_vectors,
)  # fmt: skip


class PagedCache:
    """The memory of all blocks, taken once.

    Args:
        config: of the model.
        num_blocks: N.
        block_size: P.
        dtype: of the numbers, the model's.
        device: where they are, the model's.
        format: "int8", "int4" or "fp8" keeps fewer bits, with a scale for each token and head; None keeps `dtype`.

    Raises:
        ValueError: for another format, or a width that it cannot pack.
    """

    def __init__(
        self, config: GPTConfig, num_blocks: int, block_size: int, dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu", format: KVFormat | None = None,
    ) -> None:  # fmt: skip
        self.block_size, self.dtype, self.format = block_size, dtype, format
        shape = [num_blocks, block_size, config.num_key_value_heads, config.head_dim]
        kinds = [(dtype, config.head_dim)]
        if format is not None:
            check_format(format, config.head_dim)
            # Bytes: eight-bit floats have no index operations on a CPU.
            kinds = [(torch.uint8, config.head_dim // (2 if format == "int4" else 1)), (SCALE, 1)]
        # Tensors of its own for each layer: a step of one touches no other's memory.
        self.keys, self.values = (
            [
                [torch.zeros(*shape[:3], width, dtype=kind, device=device) for kind, width in kinds]
                for _ in range(config.num_hidden_layers)
            ]
            for _ in range(2)
        )

    def write(
        self, layer: int, slots: Int[Tensor, " tokens"], keys: Float[Tensor, "tokens heads dim"],
        values: Float[Tensor, "tokens heads dim"],
    ) -> None:  # fmt: skip
        """Put the keys and values of some tokens into their slots: slot = block * P + place in the block."""
        for kept, new in ((self.keys[layer], keys), (self.values[layer], values)):
            for tensor, part in zip(kept, self._stored(new), strict=True):
                tensor.flatten(0, 1).index_copy_(0, slots, part)

    def gather(self, layer: int, table: Int[Tensor, "rows blocks"]) -> tuple[Tensor, Tensor]:
        """Keys and values of some sequences by their block tables, each (rows, K, blocks * P, D)."""
        rows, blocks = table.shape
        found = []
        for kept in (self.keys[layer], self.values[layer]):
            parts = [
                tensor.index_select(0, table.flatten()).view(rows, blocks * self.block_size, *tensor.shape[2:])
                for tensor in kept
            ]
            found.append(self._read(parts).transpose(1, 2))
        return found[0], found[1]

    def _stored(self, new: Float[Tensor, "tokens heads dim"]) -> list[Tensor]:
        if self.format is None:
            return [new]
        numbers, scale = quantize_vectors(new, self.format)
        return [numbers.view(torch.uint8), scale]

    def _read(self, parts: list[Tensor]) -> Tensor:
        if self.format is None:
            return parts[0]
        kind = {"int8": torch.int8, "int4": torch.uint8, "fp8": FP8}[self.format]
        return dequantize_vectors(QuantizedVectors(parts[0].view(kind), parts[1]), self.dtype)

    def copy(self, source: int, target: int) -> None:
        """Copy a block, in all layers: before a sequence writes into one that another holds too."""
        for tensor in self.tensors:
            tensor[target] = tensor[source]

    @property
    def tensors(self) -> list[Tensor]:
        """All memory of it."""
        return [tensor for layer in (*self.keys, *self.values) for tensor in layer]

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


@dataclass(frozen=True)
class Group:
    """Sequences whose attention is one call: as many new tokens each, and tables of one length.

    Args:
        tokens: places of their new tokens in the flat batch, sequence after sequence, (rows * new,).
        table: their blocks, filled up with block 0, (rows, blocks).
        mask: 0 where a query may look and -inf elsewhere, (rows, 1, new, blocks * P).
    """

    tokens: Int[Tensor, " tokens"]
    table: Int[Tensor, "rows blocks"]
    mask: Float[Tensor, "rows 1 new keys"]


def group(
    tables: Sequence[Sequence[int]], starts: Sequence[int], counts: Sequence[int], block_size: int,
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
) -> list[Group]:  # fmt: skip
    """Divide a flat batch into calls of attention: all that write one token together (in two parts, short and long,
    where lengths differ much), every other sequence by itself.

    Args:
        tables: the blocks of each sequence.
        starts: positions that each has before this step.
        counts: new tokens of each.
        block_size: P.
        dtype: of the masks.
        device: of the tensors.
    """
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    places, first = [], 0
    for count in counts:
        places.append(first)
        first += count
    single = sorted((row for row, count in enumerate(counts) if count == 1), key=lambda row: ends[row])
    parts = [[row] for row, count in enumerate(counts) if count > 1]
    cut = _best_cut([-(-ends[row] // block_size) for row in single])
    parts += [part for part in (single[:cut], single[cut:]) if part]
    found = []
    for rows in parts:
        new, blocks = counts[rows[0]], max(-(-ends[row] // block_size) for row in rows)
        padded = [[*tables[row][:blocks], *[0] * (blocks - len(tables[row]))] for row in rows]
        table = torch.tensor(padded, dtype=torch.long, device=device)
        last = torch.tensor([[starts[row] + i for i in range(new)] for row in rows], device=device)  # (rows, new)
        may = torch.arange(blocks * block_size, device=device) <= last[:, :, None]
        mask = torch.zeros(may.shape, dtype=dtype, device=device).masked_fill_(~may, -torch.inf)[:, None]
        tokens = torch.tensor([places[row] + i for row in rows for i in range(new)], device=device)
        found.append(Group(tokens, table, mask))
    return found


def _best_cut(blocks: Sequence[int]) -> int:
    """Where to cut sorted lengths in two, so that the fewest blocks are gathered; a second call costs some 30."""
    costs = {cut: cut * blocks[cut - 1] + (len(blocks) - cut) * blocks[-1] + 30 for cut in range(1, len(blocks))}
    best = min(costs, key=lambda cut: costs[cut], default=0)
    return best if costs and costs[best] < len(blocks) * blocks[-1] else 0


def paged_attention(
    queries: Float[Tensor, "tokens heads dim"], cache: PagedCache, layer: int, groups: Sequence[Group]
) -> Float[Tensor, "tokens heads dim"]:
    """Attention of a flat batch over what its sequences have in the cache, the new tokens' own keys written before.

    The H / K query heads that share a key head stand as further queries of that head: nothing is repeated.
    """
    out = torch.empty_like(queries)
    _, heads, dim = queries.shape
    for part in groups:
        keys, values = cache.gather(layer, part.table)  # (rows, K, S, D)
        rows, shared, new = len(part.table), keys.shape[1], part.mask.shape[2]
        q = queries[part.tokens].view(rows, new, shared, heads // shared, dim)
        q = q.permute(0, 2, 3, 1, 4).reshape(rows, shared, -1, dim)  # (rows, K, H / K * new, D)
        mask = part.mask.repeat(1, 1, heads // shared, 1) if new > 1 else part.mask
        seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        seen = seen.view(rows, shared, heads // shared, new, dim).permute(0, 3, 1, 2, 4)
        out[part.tokens] = seen.reshape(rows * new, heads, dim)
    return out
