"""A grammar as a mask over tokens: before each draw, what would leave the grammar gets the probability 0.

The parsing is llguidance's, which knows JSON schemas, regular expressions and Lark grammars, and follows a grammar
through tokens that end in the middle of a word of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llm_serve.errors import ConstraintError, RequestError

MOST_MULTIPLE = 10_000


class Grammar:
    """A `Constraint` of the engine; `json_schema` and `regex` make one.

    An answer may end where the grammar allows it, with the tokenizer's end-of-text token. One that `max_new_tokens`
    cuts is the beginning of a valid answer.

    Args:
        matcher: llguidance's, at the beginning.
        rows: of the model's vocabulary.
    """

    def __init__(self, matcher: Any, rows: int) -> None:
        self.matcher, self.rows = matcher, rows

    def start(self) -> Grammar:
        """A grammar of its own for an answer, at the beginning."""
        fresh = self.matcher.deep_copy()
        fresh.reset()
        return Grammar(fresh, self.rows)

    def mask(self) -> Bool[Tensor, " vocab"]:
        """True for tokens that may come next.

        Raises:
            ConstraintError: after a token that was not allowed, and where a step takes more than llguidance's limits.
        """
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        if self.matcher.is_error():
            raise ConstraintError(f"the grammar cannot go on: {_reason(self.matcher.get_error())}")
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self.rows].astype(bool))

    def accept(self, token: int) -> None:
        """Go on by a token; after one that the mask does not allow, the next mask raises."""
        if not self.matcher.is_stopped():
            self.matcher.consume_token(token)


def json_schema(tokenizer: PreTrainedTokenizerFast, schema: Mapping[str, Any] | None, rows: int) -> Grammar:
    """Answers that are JSON and fit a schema; any JSON object for None.

    Args:
        tokenizer: of the model.
        schema: of JSON Schema.
        rows: of the model's vocabulary.

    Raises:
        RequestError: for a schema that llguidance does not know or cannot begin, with its reason, and for multiples
            whose automaton would take it minutes.
    """
    from llguidance import LLMatcher

    asked = {"type": "object"} if schema is None else schema
    together = math.lcm(*_multiples(asked))
    if together > MOST_MULTIPLE:
        raise RequestError(
            f"multipleOf: the least common multiple of the schema's numbers, as whole ones, is {together:,}; at most "
            f"{MOST_MULTIPLE:,} is followed"
        )
    return _made(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(asked)), rows, "JSON schema")


def _multiples(schema: Any) -> Iterator[int]:
    """Every multipleOf in a schema as a whole number, 0.25 as 25: remainders are what an automaton counts."""
    rest = [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, Mapping):
            step = part.get("multipleOf")
            if type(step) is int or (type(step) is float and math.isfinite(step)):
                yield max(1, abs(int("".join(map(str, Decimal(str(step)).normalize().as_tuple().digits)))))
            rest += part.values()
        elif isinstance(part, list):
            rest += part


def regex(tokenizer: PreTrainedTokenizerFast, pattern: str, rows: int) -> Grammar:
    """Answers that match a regular expression as a whole."""
    from llguidance import LLMatcher

    return _made(tokenizer, LLMatcher.grammar_from_regex(pattern), rows, "regular expression")


@lru_cache(maxsize=4)
def _followed(tokenizer: PreTrainedTokenizerFast, rows: int) -> Any:
    """llguidance's view of a tokenizer, which takes a second to make for 50,000 tokens."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=rows)


def _made(tokenizer: PreTrainedTokenizerFast, grammar: str, rows: int, kind: str) -> Grammar:
    from llguidance import LLMatcher

    wrong = LLMatcher.validate_grammar(grammar)
    if wrong:
        raise RequestError(f"the {kind} cannot be followed: {' '.join(str(wrong).split())}")
    matcher = LLMatcher(_followed(tokenizer, rows), grammar, log_level=0)  # its warnings would tell what was asked
    matcher.compute_bitmask()  # some cannot even begin, which only the first mask shows
    if matcher.is_error():
        raise RequestError(f"the {kind} cannot be followed: {_reason(matcher.get_error())}")
    return Grammar(matcher, rows)


def _reason(error: str) -> str:
    return error.splitlines()[0] if error else "no reason given"
