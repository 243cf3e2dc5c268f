"""A request, and the sequence of tokens that is written for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
from llm_core.generate import Sampling
from torch import Tensor

from llm_serve.engine.text import TextStream


class Constraint(Protocol):
    """What an answer must be, token by token; `structured.grammar` makes one from a JSON schema."""

    def start(self) -> Constraint:
        """One of its own for a sequence, at the beginning."""

    def mask(self) -> Tensor:
        """True for the tokens that may come next, (vocab,).

        Raises:
            ConstraintError: where it cannot go on; the answer ends there.
        """

    def accept(self, token: int) -> None:
        """Go on by a token."""


@dataclass(frozen=True)
class Request:
    """What is asked of the engine.

    Args:
        prompt: token ids.
        sampling: how tokens are drawn; its seed is the first answer's, the following answers take the next seeds.
        stop: texts that end an answer, wherever tokens cut them; they are not part of it.
        n: answers that are wanted.
        logprobs: how many of the likeliest tokens are told at each place beside the one that was taken, with their
            log-probabilities (of the model, before temperature and cuts); None for none at all.
        priority: smaller goes first.
        adapter: the name of an adapter of the engine's bank; None for the model as it is.
        constraint: what the answer must be.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    priority: int = 0
    adapter: str | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probability of a token that was taken, and of the likeliest ones at its place, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Finish(Enum):
    """Why an answer ended; the values are those of OpenAI's interface, "cancelled", and "error"
    where no token can be drawn: a constraint allows none or cannot go on, or no logit that may be taken is finite."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class Sequence:
    """One answer that is being written: tokens, how many of them the cache holds, and in which blocks.

    Args:
        request: whose answer it is.
        number: of the request.
        index: of the answer among the request's n.
        arrived: the engine's step at which the request came.
        text: makes text of its tokens.
        max_new_tokens: the most it may write.
    """

    def __init__(
        self, request: Request, number: int, index: int, arrived: int, text: TextStream, max_new_tokens: int
    ) -> None:
        self.request, self.number, self.index, self.arrived = request, number, index, arrived
        self.text, self.max_new_tokens = text, max_new_tokens
        self.tokens = list(request.prompt)
        self.computed = 0  # tokens whose keys and values are in the cache
        self.table: list[int] = []
        self.keys: list[bytes] = []  # of its full blocks
        self.finish: Finish | None = None
        self.logprobs: list[TokenLogprobs] = []
        self.preempted = 0
        self.cached = 0  # prompt tokens that were found in the cache when it was admitted last
        seed = request.sampling.seed + index
        # Of the machine that the draws are made on; a draw on a GPU is copied there.
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn_from: Tensor | None = None  # logits of the token that was drawn last, until they are told
        self.constraint = None if request.constraint is None else request.constraint.start()

    @property
    def output(self) -> list[int]:
        """The tokens that were written."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def remaining(self) -> int:
        """Tokens that the model has not read: 1 while writing, more of a prompt."""
        return len(self.tokens) - self.computed

    def fork(self, index: int) -> Sequence:
        """Another answer to the same prompt, holding nothing yet."""
        text = TextStream(self.text.decode, self.request.stop)
        return Sequence(self.request, self.number, index, self.arrived, text, self.max_new_tokens)
