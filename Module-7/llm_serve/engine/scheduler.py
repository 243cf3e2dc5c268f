"""Who computes what in the next step: the tokens of a step are given out anew each time (continuous batching).

Running sequences write one token each; what is left of the step's tokens reads prompts, in chunks, in the order of
priority and arrival; blocks that an earlier sequence needs are taken from the last one in that order, which starts
again later with what it wrote so far as its prompt (preemption by recomputing).
Yu et al. 2022, Orca (OSDI 2022); Agrawal et al. 2024, Sarathi-Serve, section 4 (arXiv:2403.02310).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_serve.cache.blocks import BlockPool, block_key
from llm_serve.engine.config import EngineConfig
from llm_serve.engine.request import Sequence


@dataclass
class Plan:
    """A step: new tokens of each sequence, blocks to copy first, and who lost its blocks for it."""

    counts: dict[Sequence, int] = field(default_factory=dict)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)


class Scheduler:
    """The queue and the blocks; no tensor is here.

    Every step the first sequence in the order goes on, whatever it takes from the others, and after `patience` steps a
    waiting one counts as of the next higher priority: so each is the first one day, and ends.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks, config.block_size)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.now = 0

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        self.waiting.append(sequence)

    def schedule(self) -> Plan:
        """Choose the next step's tokens and reserve their blocks."""
        self.now += 1
        plan, budget = Plan(), self.config.max_num_batched_tokens
        order = sorted(self.running, key=self._rank)
        for writing in (True, False):
            for sequence in order:
                # A step may have taken the blocks of one that is later in the order.
                if sequence in self.running and (sequence.remaining == 1) is writing:
                    budget -= self._give(sequence, min(sequence.remaining, budget), plan)
        for sequence in sorted(self.waiting, key=self._rank):
            if budget < 1 or not self._admit(sequence, budget, plan):
                break  # nobody overtakes the first in the queue
            budget = self.config.max_num_batched_tokens - sum(plan.counts.values())
        return plan

    def _rank(self, sequence: Sequence) -> tuple[int, int, int, int]:
        return self._class(sequence), sequence.arrived, sequence.number, sequence.index

    def _class(self, sequence: Sequence) -> int:
        return sequence.request.priority - (self.now - sequence.arrived) // self.config.patience

    def _give(self, sequence: Sequence, count: int, plan: Plan) -> int:
        """Reserve blocks for the next tokens of a running sequence, and plan as many as there is room for."""
        size = self.config.block_size
        while count > 0:
            missing = self._missing(sequence, count)
            if missing <= self.pool.free:
                break
            victim = max(self.running, key=self._rank)
            if victim is sequence:  # all that are left stand before it: it waits, and keeps what it has
                count = min(count, max(0, self._room(sequence)))
                break
            self._preempt(victim, plan)
        if count < 1:
            return 0
        for place in range(sequence.computed // size, -(-(sequence.computed + count) // size)):
            if place == len(sequence.table):
                sequence.table.append(self.pool.take())
            elif self.pool.holders[sequence.table[place]] > 1:  # another answer holds it too: copy on write
                own = self.pool.take()
                plan.copies.append((sequence.table[place], own))
                self.pool.release(sequence.table[place])
                sequence.table[place] = own
        plan.counts[sequence] = count
        return count

    def _missing(self, sequence: Sequence, count: int) -> int:
        """Blocks that the next tokens need beside those it holds."""
        size = self.config.block_size
        more = -(-(sequence.computed + count) // size) - len(sequence.table)
        first = sequence.computed // size
        shared = first < len(sequence.table) and self.pool.holders[sequence.table[first]] > 1
        return max(more, 0) + shared

    def _room(self, sequence: Sequence) -> int:
        """Tokens that fit into its own last block and the free ones."""
        if self._missing(sequence, 1) > self.pool.free:
            return 0
        first = sequence.computed // self.config.block_size
        shared = first < len(sequence.table) and self.pool.holders[sequence.table[first]] > 1
        return (len(sequence.table) + self.pool.free - shared) * self.config.block_size - sequence.computed

    def _admit(self, sequence: Sequence, budget: int, plan: Plan) -> bool:
        """Start a waiting sequence, if there is a place and room; one of a lower class gives way."""
        hits = self._hits(sequence)
        count = min(len(sequence.tokens) - hits * self.config.block_size, budget)
        needed = -(-(hits * self.config.block_size + count) // self.config.block_size) - hits
        spare = len(self.running)  # a block for each that runs: or it would soon be thrown out again
        places = sequence.request.n if len(sequence.tokens) == len(sequence.request.prompt) else 1
        while self.running:
            kept = sum(self.pool.holders[block] == 0 for block in self._found(sequence, hits))
            fits = needed + kept + spare <= self.pool.free
            if fits and self._places() + places <= self.config.max_num_seqs:
                break
            last = max(self.running, key=self._rank)
            if self._class(last) <= self._class(sequence):
                return False
            self._preempt(last, plan)
            spare = len(self.running)
        sequence.table = [block for key in sequence.keys[:hits] if (block := self.pool.find(key)) is not None]
        sequence.computed = sequence.cached = len(sequence.table) * self.config.block_size
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return self._give(sequence, min(sequence.remaining, budget), plan) > 0

    def _places(self) -> int:
        """Sequences that run or will when a prompt with several answers was read."""
        alone = (each for each in self.running if each.computed < len(each.request.prompt) and not each.output)
        return len(self.running) + sum(each.request.n - 1 for each in alone)

    def _hits(self, sequence: Sequence) -> int:
        """How many blocks of its beginning are in the cache; the last token is always computed."""
        if not self.config.enable_prefix_caching:
            return 0
        self._name_blocks(sequence, len(sequence.tokens))
        most, hits = (len(sequence.tokens) - 1) // self.config.block_size, 0
        while hits < most and self.pool.peek(sequence.keys[hits]) is not None:
            hits += 1
        return hits

    def _found(self, sequence: Sequence, hits: int) -> list[int]:
        return [block for key in sequence.keys[:hits] if (block := self.pool.peek(key)) is not None]

    def _name_blocks(self, sequence: Sequence, tokens: int) -> None:
        size = self.config.block_size
        for place in range(len(sequence.keys), tokens // size):
            parent = sequence.keys[-1] if sequence.keys else b""
            part = sequence.tokens[place * size : (place + 1) * size]
            sequence.keys.append(block_key(parent, part, sequence.request.adapter or ""))

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        self.running.remove(sequence)
        plan.counts.pop(sequence, None)
        self._free(sequence)
        sequence.preempted += 1
        plan.preempted.append(sequence)
        self.waiting.append(sequence)

    def advance(self, sequence: Sequence, count: int) -> None:
        """Note that the cache holds `count` tokens more, and let later requests find the blocks that are full."""
        sequence.computed += count
        if self.config.enable_prefix_caching:
            self._name_blocks(sequence, sequence.computed)
            full = sequence.computed // self.config.block_size
            for place in range((sequence.computed - count) // self.config.block_size, full):
                self.pool.publish(sequence.table[place], sequence.keys[place])

    def fork(self, sequence: Sequence, other: Sequence) -> None:
        """Let another answer to a prompt go on from its blocks."""
        other.table = [self.pool.share(block) for block in sequence.table]
        other.computed, other.keys = sequence.computed, list(sequence.keys)
        self.running.append(other)

    def end(self, sequence: Sequence) -> None:
        """Take a sequence out and free its blocks."""
        for place in (self.running, self.waiting):
            if sequence in place:
                place.remove(sequence)
        self._free(sequence)

    def _free(self, sequence: Sequence) -> None:
        for block in reversed(sequence.table):  # a beginning is of use to more requests than an end: it goes last
            self.pool.release(block)
        sequence.table, sequence.computed = [], 0
