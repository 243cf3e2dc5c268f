"""Log-probabilities of the tokens that were written, and sums over answers.

Shapes: B answers, T positions, V tokens. A mask is 1 (or True) where a position is a token of the answer.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PerToken = Float[Tensor, "batch time"]
PerAnswer = Float[Tensor, " batch"]
Mask = Bool[Tensor, "batch time"]


def token_logprobs(
    logits: Float[Tensor, "batch time vocab"], ids: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch time_less_one"]:
    """log p of each token but the first, given those before it: place t of the result is of token t + 1.

    In float32, whatever the logits are in: differences of log-probabilities are what every objective here is made of.
    """
    shifted = logits[:, :-1].float()
    chosen = shifted.gather(-1, ids[:, 1:, None])[..., 0]
    return chosen - shifted.logsumexp(dim=-1)


def answer_mask(
    prompt_lengths: Int[Tensor, " batch"], lengths: Int[Tensor, " batch"], time: int
) -> Bool[Tensor, "batch time_less_one"]:
    """True where `token_logprobs` speaks of a token of the answer.

    Args:
        prompt_lengths: tokens of each prompt; rows are filled up on the right.
        lengths: tokens of prompt and answer together.
        time: T of the rows.

    Raises:
        ValueError: for a row without a prompt, or longer than T.
    """
    if bool((prompt_lengths < 1).any()) or bool((lengths < prompt_lengths).any()) or bool((lengths > time).any()):
        raise ValueError(f"each row needs a prompt of at least 1 token, and at most {time} tokens in all")
    token = torch.arange(1, time, device=lengths.device)
    return (token >= prompt_lengths[:, None]) & (token < lengths[:, None])


def over_answers(per_token: PerToken, mask: Mask) -> PerAnswer:
    """The sum over each answer's tokens; 0 for an empty one, whatever stands outside the mask."""
    return per_token.masked_fill(~mask, 0.0).sum(dim=-1)
