"""What a policy says of answers, and the reference that it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Int
from llm_core.model import GPT
from llm_peft.lora.inject import adapters
from torch import Tensor, nn

from llm_align.objectives.logprobs import Mask, PerToken


class Said(NamedTuple):
    """Of each token of the answers, elsewhere 0: its log-probability, and the entropy of its place in nats."""

    logprobs: PerToken
    entropy: PerToken


def answer_logprobs(
    model: GPT, ids: Int[Tensor, "batch tokens"], mask: Mask, temperature: float = 1.0
) -> Said:  # fmt: skip
    """`token_logprobs` where the mask is, and nothing elsewhere: the head is asked at the answers' places alone.

    With 49,152 tokens and prompts as long as answers that halves the largest tensor of a step. Rows are filled up on
    the right, where no token of an answer looks.

    Args:
        model: the policy.
        ids: prompts with their answers.
        mask: of the answers, by `answer_mask`: a place less than there are tokens in a row.
        temperature: that the answers were drawn at; logits are divided by it.
    """
    hidden = model.features(ids)[:, :-1][mask]  # (tokens of answers, C)
    logits = model.lm_head(hidden).float() / temperature
    normaliser = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, ids[:, 1:][mask][:, None])[:, 0] - normaliser
    with torch.no_grad():
        chances = (logits - normaliser[:, None]).exp()
        entropy = normaliser - (chances * logits).sum(dim=-1)
    whole = torch.zeros(mask.shape, device=ids.device)
    return Said(whole.masked_scatter(mask, logprobs), whole.masked_scatter(mask, entropy))


class Reference:
    """The model that a policy began as.

    Behind an adapter it is the policy itself without the adapter, and takes no memory; else a frozen copy.

    Args:
        model: the policy, before its first step.
    """

    def __init__(self, model: GPT) -> None:
        self._shared = next(adapters(model), None) is not None
        # In a tuple: it is no part of the module that holds this, nor of its checkpoints.
        self._held = (model if self._shared else copy.deepcopy(model).eval().requires_grad_(False),)

    @contextmanager
    def model(self) -> Iterator[GPT]:
        """The reference, in evaluation mode, for as long as the block runs."""
        (held,), was_training = self._held, self._held[0].training
        with without_adapters(held) if self._shared else nullcontext():
            try:
                yield held.eval()
            finally:
                held.train(was_training)

    @torch.no_grad()
    def logprobs(self, ids: Int[Tensor, "batch tokens"], mask: Mask, temperature: float = 1.0) -> PerToken:
        """As `answer_logprobs`, without gradients."""
        if not self._shared:
            self._held = (self._held[0].to(ids.device),)
        with self.model() as model:
            return answer_logprobs(model, ids, mask, temperature).logprobs


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The frozen layers alone, for as long as the block runs."""
    layers = list(adapters(model))
    for name, layer in layers:
        model.set_submodule(name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in layers:
            model.set_submodule(name, layer)
