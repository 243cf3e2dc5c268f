"""Writing with guesses: some tokens are guessed, the model looks at all of them in one step, and some stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from llm_core.generate import Sampling, room
from llm_core.model import GPT

from llm_serve.cache.preallocated import PreallocatedCache
from llm_serve.speculation.accept import accept
from llm_serve.speculation.guess import Guesser
from llm_serve.speculation.law import law


@dataclass(frozen=True)
class Speculated:
    """What was written, and how: the tokens, the looks of the model, guesses made, and guesses that stayed."""

    tokens: tuple[int, ...]
    looks: int
    guessed: int
    kept: int

    @property
    def tokens_per_look(self) -> float:
        """What one step of the model gives; 1 without guesses."""
        return len(self.tokens) / self.looks


@torch.inference_mode()
def speculate(model: GPT, prompt: Sequence[int], sampling: Sampling, guesser: Guesser, guesses: int = 4) -> Speculated:
    """Continue a prompt. Greedy, the tokens are those of `generate`; drawn, they have the same law as its.

    Args:
        model: in evaluation mode.
        prompt: token ids.
        sampling: as for `generate`.
        guesser: of the same vocabulary.
        guesses: k, in each round.

    Raises:
        ValueError: as `generate`, and for a guesser of another vocabulary.
    """
    most = room(model, [prompt], sampling.max_new_tokens)
    generator = torch.Generator().manual_seed(sampling.seed)
    weight = model.lm_head.weight
    cache = PreallocatedCache(model.config, 1, len(prompt) + most, weight.dtype, weight.device)
    tokens, looks, guessed, kept = list(prompt), 0, 0, 0
    while len(tokens) < len(prompt) + most:
        left = len(prompt) + most - len(tokens) - 1  # the token behind the guesses is always written
        found, q = guesser.guess(tokens, min(guesses, left), sampling, generator)
        if q.shape[1] != model.config.vocab_size:
            raise ValueError(
                f"the guesser has {q.shape[1]} tokens and the model {model.config.vocab_size}; they need one tokenizer"
            )
        new = [*tokens[len(cache) :], *found]
        logits = model(torch.tensor([new], device=weight.device), cache=cache).logits[0, -len(found) - 1 :]
        p = torch.stack([law(row, [*tokens, *found[:place]], sampling) for place, row in enumerate(logits)])
        stay, following = accept(p, q, found, generator)
        looks, guessed, kept = looks + 1, guessed + len(found), kept + stay
        for token in (*found[:stay], following):
            tokens.append(token)
            if token in sampling.stop_ids:
                return Speculated(tuple(tokens[len(prompt) :]), looks, guessed, kept)
        cache.crop(len(tokens) - 1)  # a guess that did not stay is forgotten; the last token was not read yet
    return Speculated(tuple(tokens[len(prompt) :]), looks, guessed, kept)
