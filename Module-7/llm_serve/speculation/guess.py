"""Who guesses: a smaller model, or the text itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from llm_core.generate import Sampling
from llm_core.model import GPT
from torch import Tensor

from llm_serve.cache.preallocated import PreallocatedCache
from llm_serve.speculation.law import law


class Guesser(Protocol):
    """Names the next tokens of a text, and the probabilities that it drew them with."""

    def guess(
        self, tokens: Sequence[int], most: int, sampling: Sampling, generator: torch.Generator
    ) -> tuple[list[int], Float[Tensor, "guesses vocab"]]:
        """Up to `most` tokens that may follow."""


class PromptLookup:
    """Guesses that the text goes on as it did after the same last tokens before: no model, and no time.

    A summary or a correction repeats its prompt; a story does not.

    Args:
        vocab_size: of the model.
        longest: tokens at the end that are looked for; where they are not found, one less, down to 1.
    """

    def __init__(self, vocab_size: int, longest: int = 3) -> None:
        if longest < 1:
            raise ValueError(f"longest={longest} must be at least 1")
        self.vocab_size, self.longest = vocab_size, longest

    def guess(
        self, tokens: Sequence[int], most: int, sampling: Sampling, generator: torch.Generator
    ) -> tuple[list[int], Float[Tensor, "guesses vocab"]]:
        """What followed the last place where the last tokens stood; nothing where they never did."""
        found: list[int] = []
        text = list(tokens)
        for length in range(min(self.longest, len(text) - 1), 0, -1):
            end = text[-length:]
            starts = range(len(text) - length - 1, -1, -1)
            place = next((start for start in starts if text[start : start + length] == end), None)
            if place is not None:
                found = text[place + length : place + length + most]
                break
        sure = torch.zeros(len(found), self.vocab_size)
        sure[range(len(found)), found] = 1.0
        return found, sure


class DraftModel:
    """Guesses by a smaller model with the same tokenizer.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: GPT) -> None:
        self.model = model
        positions, weight = model.config.max_position_embeddings, model.lm_head.weight
        self._cache = PreallocatedCache(model.config, 1, positions, weight.dtype, weight.device)
        self._read: list[int] = []  # the tokens in the cache

    @torch.inference_mode()
    def guess(
        self, tokens: Sequence[int], most: int, sampling: Sampling, generator: torch.Generator
    ) -> tuple[list[int], Float[Tensor, "guesses vocab"]]:
        """Tokens drawn one after another from the small model, by the same settings."""
        text, laws = list(tokens), []
        most = min(most, self.model.config.max_position_embeddings - len(text))
        for _ in range(most):
            logits = self._logits(text)
            laws.append(law(logits, text, sampling))
            text.append(int(torch.multinomial(laws[-1], 1, generator=generator)))
        rows = torch.stack(laws) if laws else torch.zeros(0, self.model.config.vocab_size)
        return text[len(tokens) :], rows

    def _logits(self, text: list[int]) -> Tensor:
        """Of the token behind a text; what the cache holds of the same text is not computed again."""
        known = 0
        while known < min(len(self._read), len(text) - 1) and self._read[known] == text[known]:
            known += 1
        self._cache.crop(known)
        self._read = list(text)
        ids = torch.tensor([text[known:]], device=self.model.lm_head.weight.device)
        logits: Tensor = self.model(ids, cache=self._cache).logits[0, -1]
        return logits
