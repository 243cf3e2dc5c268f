"""A grammar as a mask over tokens: before each draw, what would leave the grammar gets the probability 0.

The parsing is llguidance's, which knows JSON schemas, regular expressions and Lark grammars, and follows a grammar
through tokens that end in the middle of a word of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llm_serve.errors import RequestError


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
        """True for tokens that may come next."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        self._refuse_errors()
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self.rows].astype(bool))

    def accept(self, token: int) -> None:
        """Go on by a token.

        Raises:
            ValueError: for one that the mask does not allow.
        """
        if not self.matcher.is_stopped():
            self.matcher.consume_token(token)
        self._refuse_errors()

    def _refuse_errors(self) -> None:
        if self.matcher.is_error():
            raise ValueError(f"the grammar cannot go on: {str(self.matcher.get_error()).splitlines()[0]}")


def json_schema(tokenizer: PreTrainedTokenizerFast, schema: Mapping[str, Any] | None, rows: int) -> Grammar:
    """Answers that are JSON and fit a schema; any JSON object for None.

    Args:
        tokenizer: of the model.
        schema: of JSON Schema.
        rows: of the model's vocabulary.

    Raises:
        RequestError: for a schema that llguidance does not know, with its reason.
    """
    from llguidance import LLMatcher

    asked = {"type": "object"} if schema is None else schema
    return _made(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(asked)), rows, "JSON schema")


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
    return Grammar(LLMatcher(_followed(tokenizer, rows), grammar), rows)
