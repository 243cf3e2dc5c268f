"""Which block of memory belongs to whom: counts of holders, blocks found again by what they hold, and eviction.

A block has room for `block_size` positions of every layer. No tensor is here; `cache.paged` has them.
Kwon et al. 2023, Efficient Memory Management for Large Language Model Serving with PagedAttention (arXiv:2309.06180).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence


def block_key(parent: bytes, tokens: Sequence[int], owner: str = "") -> bytes:
    """What a full block is found by: its tokens and everything before them, since keys and values depend on both.

    Args:
        parent: the key of the block before; b"" for the first.
        tokens: of the block.
        owner: what else the numbers depend on, such as the name of an adapter.
    """
    said = f"{owner}\0{','.join(map(str, tokens))}".encode()
    return hashlib.sha256(parent + said).digest()


class BlockPool:
    """A fixed number of blocks. A block is free, or held by one sequence or more; a free one may still hold keys and
    values that a later request begins with, until the room is needed (the longest unused goes first).

    Args:
        num_blocks: how many there are.
        block_size: positions in one.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks={num_blocks} and block_size={block_size} must be at least 1")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.holders = [0] * num_blocks
        self._empty = list(reversed(range(num_blocks)))  # free, nothing in them
        self._kept: OrderedDict[int, None] = OrderedDict()  # free, found again by key; the longest unused first
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self.evicted = 0

    @property
    def free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._empty) + len(self._kept)

    @property
    def used(self) -> int:
        """Blocks that at least one sequence holds."""
        return self.num_blocks - self.free

    def take(self) -> int:
        """A block to write into, held once.

        Raises:
            MemoryError: when every block is held; the caller frees some first.
        """
        if self._empty:
            block = self._empty.pop()
        elif self._kept:
            block, _ = self._kept.popitem(last=False)
            self._forget(block)
            self.evicted += 1
        else:
            raise MemoryError(f"all {self.num_blocks} blocks are held")
        self.holders[block] = 1
        return block

    def share(self, block: int) -> int:
        """Hold a block once more."""
        if self.holders[block] == 0:
            raise ValueError(f"block {block} is free, and a free block cannot be shared; `find` takes one back")
        self.holders[block] += 1
        return block

    def release(self, block: int) -> None:
        """Hold a block once less; it is free when nobody holds it.

        Raises:
            ValueError: when nobody holds it: it would be handed out twice.
        """
        if self.holders[block] == 0:
            raise ValueError(f"block {block} is free already")
        self.holders[block] -= 1
        if self.holders[block] == 0:
            if block in self._key_of:
                self._kept[block] = None
            else:
                self._empty.append(block)

    def publish(self, block: int, key: bytes) -> None:
        """Let a full block be found by later requests; where one with the same key is there already, that one stays."""
        if key not in self._block_of and block not in self._key_of:
            self._key_of[block], self._block_of[key] = key, block

    def find(self, key: bytes) -> int | None:
        """The block with a key, held once more; None where there is none."""
        block = self._block_of.get(key)
        if block is not None:
            self._kept.pop(block, None)
            self.holders[block] += 1
        return block

    def peek(self, key: bytes) -> int | None:
        """The block with a key, without holding it."""
        return self._block_of.get(key)

    def forget(self) -> None:
        """Find none of the blocks again, whoever holds them; those that nobody holds are empty."""
        self._empty.extend(self._kept)
        self._kept.clear()
        self._key_of.clear()
        self._block_of.clear()

    def _forget(self, block: int) -> None:
        del self._block_of[self._key_of.pop(block)]
