"""The engine: requests in, tokens out, a step at a time, many requests in each step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, KeysView
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import Any

from llm_core.foreign import vocab_rows
from llm_core.generate import room, stop_ids
from llm_core.model import GPT
from llm_peft.lora.bank import AdapterBank
from torch import nn
from transformers import PreTrainedTokenizerFast

from llm_serve.cache.paged import PagedCache
from llm_serve.engine.config import EngineConfig
from llm_serve.engine.draw import draw, told
from llm_serve.engine.forward import Piece, forward
from llm_serve.engine.request import Finish, Request, Sequence, TokenLogprobs
from llm_serve.engine.scheduler import Plan, Scheduler
from llm_serve.engine.text import TextStream, remembering
from llm_serve.errors import QueueFull, RequestError


@dataclass(frozen=True)
class Delta:
    """What a step adds to an answer.

    Args:
        number: of the request.
        index: of the answer among the request's n.
        token: that was written; None where an answer only ends.
        text: that is settled by it.
        finish: why the answer ends with it; None while it goes on.
        logprobs: of the token, where they were asked for.
    """

    number: int
    index: int
    token: int | None
    text: str
    finish: Finish | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Answer:
    """An answer that is whole: the tokens, a stop token included, the text without it, and why it ended."""

    tokens: tuple[int, ...]
    text: str
    finish: Finish
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Step:
    """A line of the engine's log.

    Args:
        begin: seconds since the engine was made.
        seconds: that the step took.
        tokens: (request, answer, new tokens, whether it wrote) of each sequence in it.
        preempted: requests that lost their blocks for it.
        waiting: requests that had to wait.
        blocks: that were held.
    """

    begin: float
    seconds: float
    tokens: tuple[tuple[int, int, int, bool], ...]
    preempted: tuple[int, ...]
    waiting: int
    blocks: int


class Engine:
    """Many requests on one model; each gets the tokens that it would get alone.

    Args:
        model: a `GPT` (`load_model` makes one of every folder with Llama's architecture), in evaluation mode.
        tokenizer: of the model; None where only tokens are wanted, not texts.
        config: what it may take.
        bank: adapters of the model, for requests that name one.

    Raises:
        TypeError: for a model that is no `GPT`: its attention does not know the blocks.
        ValueError: for a bank of another model.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerFast | None = None,
        config: EngineConfig | None = None, bank: AdapterBank | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(model, GPT):
            kind = type(model).__name__
            raise TypeError(f"{kind} is not of this course's GPT class; load_model makes one of a Llama-like folder")
        self.config = config or EngineConfig()
        self.model, self.tokenizer, self.bank = model.eval(), tokenizer, bank
        weight = model.model.embed_tokens.weight
        self.cache = PagedCache(
            model.config, self.config.num_blocks, self.config.block_size, weight.dtype, weight.device,
            self.config.kv_format,
        )  # fmt: skip
        self.scheduler = Scheduler(self.config)
        self.log: deque[Step] = deque(maxlen=self.config.log_steps)
        self._sequences: dict[int, list[Sequence]] = {}  # of requests that are not whole
        self._next, self._made, self._text_of = 0, time.perf_counter(), remembering(self._decode)
        known = None if tokenizer is None else set(tokenizer.get_vocab().values())
        self._without = () if known is None else tuple(row for row in range(vocab_rows(model)) if row not in known)
        end = None if tokenizer is None else tokenizer.eos_token_id
        self.stop_ids = tuple(dict.fromkeys((*stop_ids(model), *(() if end is None else (int(end),)))))

    @property
    def unfinished(self) -> int:
        """Requests that are not whole."""
        return len(self._sequences)

    @property
    def open_requests(self) -> KeysView[int]:
        """Their numbers."""
        return self._sequences.keys()

    def submit(self, request: Request) -> int:
        """Take a request, and give the number by which its answers come.

        A request's sampling gets the model's stop tokens beside its own.

        Raises:
            RequestError: for a request that could never be served, with the reason.
            QueueFull: when `max_waiting` requests wait.
        """
        if len(self.scheduler.waiting) >= self.config.max_waiting:
            raise QueueFull(f"{self.config.max_waiting} requests wait already; send it again later")
        request, most = self._checked(request)
        number, self._next = self._next, self._next + 1
        sequence = Sequence(request, number, 0, self.scheduler.now, TextStream(self._text_of, request.stop), most)
        self._sequences[number] = [sequence]
        self.scheduler.add(sequence)
        return number

    def _checked(self, request: Request) -> tuple[Request, int]:
        asked, rows = request.sampling, vocab_rows(self.model)
        try:
            most = room(self.model, [request.prompt], asked.max_new_tokens)
        except ValueError as error:
            raise RequestError(str(error)) from None
        places = self.config.num_blocks * self.config.block_size
        if len(request.prompt) + most > places:
            raise RequestError(
                f"a prompt of {len(request.prompt)} tokens and {most} new ones, and the cache has room for {places}; "
                "ask for fewer, or start the engine with more blocks"
            )
        if not 1 <= request.n <= self.config.max_num_seqs:
            raise RequestError(f"n={request.n} answers; from 1 to {self.config.max_num_seqs} can be asked for")
        if asked.seed + request.n > 2**64:  # each answer has a seed of its own
            raise RequestError(f"seed={asked.seed} and n={request.n}: the last answer's seed is beyond 2^64 - 1")
        if (wrong := next((each for each in asked.suppress_tokens if not 0 <= each < rows), None)) is not None:
            raise RequestError(f"suppress_tokens has token {wrong}, and the model a vocab_size of {rows}")
        if request.logprobs is not None and not 0 <= request.logprobs <= rows:
            raise RequestError(f"logprobs={request.logprobs} must be from 0 to {rows}")
        if any(not stop for stop in request.stop):
            raise RequestError("a stop text is empty; leave it out")
        if request.stop and self.tokenizer is None:
            raise RequestError("stop texts need a tokenizer, and the engine has none; use stop_ids")
        names = () if self.bank is None else tuple(name for name in self.bank.names if name is not None)
        if request.adapter is not None and request.adapter not in names:
            there = f"there are {', '.join(names)}" if names else "the engine has none"
            raise RequestError(f"no adapter is called {request.adapter!r}; {there}")
        stops = tuple(dict.fromkeys((*asked.stop_ids, *self.stop_ids)))
        sampling = replace(asked, stop_ids=stops, suppress_tokens=(*asked.suppress_tokens, *self._without))
        return replace(request, sampling=sampling), most

    def _decode(self, tokens: list[int]) -> str:
        return "" if self.tokenizer is None else str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def weights_changed(self) -> None:
        """Forget the keys and values of the weights before; a RuntimeError while a request is not whole."""
        if self.unfinished:
            raise RuntimeError(f"{self.unfinished} requests are not whole; end them before the weights change")
        self.scheduler.pool.forget()

    def cancel(self, number: int) -> list[Delta]:
        """End a request where it stands and free what it held; one that is whole or unknown is left alone."""
        ended = [each for each in self._sequences.get(number, []) if each.finish is None]
        return [delta for each in ended for delta in self._end(each, None, Finish.CANCELLED, None)]

    def step(self) -> list[Delta]:
        """Compute one step, and give what it wrote."""
        begin = time.perf_counter()
        plan = self.scheduler.schedule()
        if not plan.counts:
            return []
        for source, target in plan.copies:
            self.cache.copy(source, target)
        # Sequences with one adapter lie side by side: its matrices are multiplied once.
        order = sorted(plan.counts, key=lambda each: each.request.adapter or "")
        pieces = [
            Piece(
                each.tokens[each.computed : each.computed + plan.counts[each]], each.computed, each.table,
                int(plan.counts[each] == each.remaining),
            )
            for each in order
        ]  # fmt: skip
        if self.bank is not None:
            self.bank.choose_spans([each.request.adapter for each in order], [len(each.tokens) for each in pieces])
        logits = forward(self.model, self.cache, pieces)
        for each in order:
            self.scheduler.advance(each, plan.counts[each])
        ready = [each for each, piece in zip(order, pieces, strict=True) if piece.wants]
        rows = list(range(len(ready)))
        for row, each in list(zip(rows, ready, strict=True)):  # a prompt with several answers was read: they part here
            if each.request.n > 1 and not each.output and each.index == 0:
                for index in range(1, each.request.n):
                    other = each.fork(index)
                    self.scheduler.fork(each, other)
                    self._sequences[each.number].append(other)
                    ready.append(other)
                    rows.append(row)
        wanted: Any = logits[rows]
        deltas = []
        for row, (each, token) in enumerate(zip(ready, draw(wanted, ready), strict=True)):
            deltas += self._wrote(each, token, wanted[row])
        self._note(begin, plan, order)
        return deltas

    def _wrote(self, sequence: Sequence, token: int | None, row: Any) -> list[Delta]:
        asked = sequence.request
        if token is None:
            return self._end(sequence, None, Finish.ERROR, None)
        drawn_by = sequence if self.config.logprobs_mode == "processed_logprobs" else None
        logprobs = None if asked.logprobs is None else told(row, token, asked.logprobs, drawn_by)
        if logprobs is not None:
            sequence.logprobs.append(logprobs)
        sequence.tokens.append(token)
        if sequence.constraint is not None:
            sequence.constraint.accept(token)
        stopping = token in asked.sampling.stop_ids
        text = "" if stopping else sequence.text.push(token)
        if stopping or sequence.text.stopped:
            return self._end(sequence, token, Finish.STOP, logprobs, text)
        if len(sequence.output) >= sequence.max_new_tokens:
            return self._end(sequence, token, Finish.LENGTH, logprobs, text)
        return [Delta(sequence.number, sequence.index, token, text, None, logprobs)]

    def _end(
        self, sequence: Sequence, token: int | None, finish: Finish, logprobs: TokenLogprobs | None, text: str = ""
    ) -> list[Delta]:
        sequence.finish = finish
        self.scheduler.end(sequence)
        if all(each.finish is not None for each in self._sequences[sequence.number]):
            del self._sequences[sequence.number]
        text += sequence.text.close()
        return [Delta(sequence.number, sequence.index, token, text, finish, logprobs)]

    def _note(self, begin: float, plan: Plan, order: list[Sequence]) -> None:
        tokens = tuple((each.number, each.index, plan.counts[each], bool(each.output)) for each in order)
        preempted = tuple(each.number for each in plan.preempted)
        waiting, used = len(self.scheduler.waiting), self.scheduler.pool.used
        self.log.append(Step(begin - self._made, time.perf_counter() - begin, tokens, preempted, waiting, used))

    def run(self, requests: Iterable[Request]) -> list[list[Answer]]:
        """Serve some requests to their end, all at once: the answers of each, in their order.

        Raises:
            RequestError: for one that cannot be served; then none is.
        """
        before, wanted = self._next, list(requests)
        for request in wanted:
            self._checked(request)
        queue, numbers = deque(wanted), list[int]()
        parts: dict[tuple[int, int], list[Delta]] = {}
        while queue or any(number in self._sequences for number in numbers):
            while queue and len(self.scheduler.waiting) < self.config.max_waiting:
                numbers.append(self.submit(queue.popleft()))
            for delta in self.step():
                parts.setdefault((delta.number, delta.index), []).append(delta)
        return [
            [answer(parts[number, index]) for index in range(request.n)]
            for number, request in zip(range(before, before + len(wanted)), wanted, strict=True)
        ]


def answer(deltas: Rows[Delta]) -> Answer:
    """An answer from all that was written of it.

    Raises:
        ValueError: when it is not at its end.
    """
    finish = deltas[-1].finish if deltas else None
    if finish is None:
        raise ValueError("the answer has not ended")
    tokens = tuple(each.token for each in deltas if each.token is not None)
    logprobs = tuple(each.logprobs for each in deltas if each.logprobs is not None)
    return Answer(tokens, "".join(each.text for each in deltas), finish, logprobs)
