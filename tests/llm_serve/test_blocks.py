"""Blocks: a state machine over the pool, and a table of what belongs to whom kept beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from llm_core.config import GPTConfig
from llm_serve.cache.blocks import BlockPool, block_key
from llm_serve.cache.paged import PagedCache, _best_cut, group

BLOCKS = 6


class Pool(RuleBasedStateMachine):
    """Takes, shares, frees, publishes and finds blocks, and knows what each must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, 4)
        self.held: list[int] = []  # one entry for each holder
        self.content: dict[int, int] = {}  # what the last writer put into a block
        self.keys: dict[bytes, int] = {}  # what must be found by a key, if anything is
        self.written = 0

    @rule()
    def take(self) -> None:
        if len(set(self.held)) == BLOCKS:
            with pytest.raises(MemoryError, match=f"all {BLOCKS} blocks are held"):
                self.pool.take()
            return
        block = self.pool.take()
        assert block not in self.held  # nobody's memory is given away
        self.written += 1
        self.content[block] = self.written
        self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data) -> None:
        self.held.append(self.pool.share(data.draw(st.sampled_from(self.held))))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.held.remove(block)
        self.pool.release(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), name=st.integers(0, 3))
    def publish(self, data, name) -> None:
        block, key = data.draw(st.sampled_from(self.held)), block_key(b"", [name])
        if self.pool.peek(key) is None and block not in self.pool._key_of:
            self.keys[key] = self.content[block]
        self.pool.publish(block, key)

    @rule(name=st.integers(0, 3))
    def find(self, name) -> None:
        key = block_key(b"", [name])
        there = self.pool.peek(key)
        block = self.pool.find(key)
        assert block == there
        if block is not None:
            assert self.content[block] == self.keys[key]  # nobody wrote into it since
            self.held.append(block)

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        self.keys = {}
        assert all(self.pool.peek(block_key(b"", [name])) is None for name in range(4))

    @invariant()
    def counts(self) -> None:
        assert self.pool.holders == [self.held.count(block) for block in range(BLOCKS)]
        assert self.pool.used == len(set(self.held)) and self.pool.free + self.pool.used == BLOCKS


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_longest_unused_goes_first():
    pool = BlockPool(3, 4)
    blocks = [pool.take() for _ in range(3)]
    for block in blocks:
        pool.publish(block, block_key(b"", [block]))
    for block in (blocks[1], blocks[0], blocks[2]):
        pool.release(block)
    assert pool.find(block_key(b"", [blocks[1]])) == blocks[1]  # used again
    pool.release(blocks[1])
    assert pool.take() == blocks[0] and pool.evicted == 1
    assert pool.peek(block_key(b"", [blocks[0]])) is None


def test_mistakes_with_blocks():
    pool = BlockPool(2, 4)
    block = pool.take()
    pool.release(block)
    with pytest.raises(ValueError, match=f"block {block} is free already"):
        pool.release(block)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share(block)
    with pytest.raises(ValueError, match="num_blocks=0"):
        BlockPool(0, 4)


def test_a_key_depends_on_all_that_comes_before():
    first = block_key(b"", [1, 2])
    assert block_key(first, [3, 4]) != block_key(block_key(b"", [9, 2]), [3, 4])
    assert block_key(b"", [1, 2], "german") != first
    assert block_key(b"", [11, 2]) != block_key(b"", [1, 12])  # digits do not run together


def test_groups_cover_every_token_once_and_mask_what_is_not_there():
    tables, starts, counts = [[0, 1], [2], [3, 4, 5], [1, 2, 3, 4, 5, 0]], [4, 0, 8, 21], [1, 3, 1, 1]
    parts = group(tables, starts, counts, 4)
    assert sorted(torch.cat([part.tokens for part in parts]).tolist()) == list(range(6))
    seen = {}
    for part in parts:
        new = part.mask.shape[2]
        for row, tokens in enumerate(part.tokens.view(-1, new).tolist()):
            for place, token in enumerate(tokens):
                seen[token] = int((part.mask[row, 0, place] == 0).sum())
    assert seen == {0: 5, 1: 1, 2: 2, 3: 3, 4: 9, 5: 22}  # each sees what it has, and itself


def test_a_cut_is_made_where_it_saves_more_than_a_call():
    assert _best_cut([5, 5, 5]) == 0  # as one
    assert _best_cut([2] * 8 + [40]) == 8
    assert _best_cut([]) == _best_cut([7]) == 0


def test_a_copied_block_is_equal_in_every_layer():
    config = GPTConfig(32, 16, num_hidden_layers=3, num_attention_heads=2)
    cache = PagedCache(config, 3, 2)
    for part in cache.tensors:
        part.normal_()
    cache.copy(0, 2)
    assert len(cache.tensors) == 6
    assert all(torch.equal(part[0], part[2]) and not torch.equal(part[0], part[1]) for part in cache.tensors)
