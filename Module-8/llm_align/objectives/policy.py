"""Objectives that raise what was better than expected: PPO's, GRPO's and their kin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llm_align.objectives.logprobs import Mask, PerAnswer, PerToken, over_answers

NORMALISERS, RATIOS = ("answer", "tokens", "length"), ("token", "sequence", "answer")


class Policy(NamedTuple):
    """The loss, and what is watched: mean KL to the reference a token, and the share of tokens that were clipped.

    `total` is the sum that `loss` is the mean of, over `divisor`: sums of several batches make one step of any size.
    """

    loss: Float[Tensor, ""]
    kl: float
    clipped: float
    total: Float[Tensor, ""]
    divisor: int


def kl_estimate(logprobs: PerToken, reference: PerToken) -> PerToken:
    """exp(d) - d - 1 with d = log p_reference - log p: unbiased for tokens drawn from p, and never below 0.

    Shao et al. 2024, equation 4 (arXiv:2402.03300).
    """
    difference = reference - logprobs
    return difference.exp() - difference - 1


def clipped_ratio(ratio: Tensor, advantages: Tensor, low: float = 0.2, high: float = 0.2) -> tuple[Tensor, Tensor]:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A), and where the second is smaller and has no gradient.

    Schulman et al. 2017, equation 7 (arXiv:1707.06347).
    """
    plain, clipped = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return -torch.min(plain, clipped), (clipped < plain) & (ratio.clamp(1 - low, 1 + high) != ratio)


def policy_loss(
    logprobs: PerToken, old: PerToken, advantages: PerAnswer | PerToken, mask: Mask, *,
    normaliser: str = "answer", max_length: int | None = None, ratio: str = "token",
    low: float = 0.2, high: float = 0.2, beta: float = 0.0, reference: PerToken | None = None,
    weights: PerToken | None = None,
) -> Policy:  # fmt: skip
    """The clipped objective over answers.

    Args:
        logprobs: of the tokens under the policy.
        old: under the policy that drew them, without gradients.
        advantages: of each answer, or of each token (PPO's, by `gae`).
        mask: tokens of the answers.
        normaliser: what the sum over tokens is divided by. "answer": each answer by its own length, then the mean
            (GRPO: a token of a long answer counts less); "tokens": all tokens of the batch (DAPO, Yu et al. 2025,
            arXiv:2503.14476); "length": `max_length` for each answer (Dr. GRPO: a constant, no answer's own).
        max_length: for "length".
        ratio: "token"; "sequence" for the geometric mean over an answer's tokens (GSPO, Zheng et al. 2025,
            arXiv:2507.18071); "answer" for their product, the ratio of the answers' probabilities, in which case an
            answer is one action and the loss the mean over answers, whatever `normaliser` says (RLOO).
        low, high: the ratio is clipped to 1 - low ... 1 + high.
        beta: weight of `kl_estimate`.
        reference: log-probabilities under the reference, without gradients; with beta above 0.
        weights: of each token, such as the truncated importance weights between engine and trainer.

    Raises:
        ValueError: for words that are none of these, and for what is missing.
    """
    for name, given, known in (("normaliser", normaliser, NORMALISERS), ("ratio", ratio, RATIOS)):
        if given not in known:
            raise ValueError(f"{name}={given!r} is none of {', '.join(known)}")
    if normaliser == "length" and (max_length is None or max_length < 1):
        raise ValueError('normaliser="length" needs max_length, at least 1')
    if ratio == "answer" and (beta or weights is not None):
        raise ValueError('ratio="answer" has no tokens to weigh, and takes neither beta nor weights; leave them out')
    if beta and reference is None:
        raise ValueError("beta above 0 needs the reference's log-probabilities")
    log_ratio = (logprobs - old).masked_fill(~mask, 0.0)
    tokens = mask.sum(dim=-1).clamp(min=1)
    if ratio == "sequence":
        log_ratio = (log_ratio.sum(dim=-1) / tokens)[:, None]
    each = advantages[:, None] if advantages.ndim == 1 else advantages
    kl = torch.zeros_like(logprobs) if reference is None else kl_estimate(logprobs, reference)
    written = max(int(mask.sum()), 1)
    distance = float(over_answers(kl.detach(), mask).sum() / written)
    if ratio == "answer":
        return _of_answers(log_ratio, advantages, low, high, distance)
    losses, clipped = clipped_ratio(log_ratio.exp(), each, low, high)
    losses, clipped = losses.expand_as(logprobs), clipped.expand_as(logprobs)
    if weights is not None:
        losses = losses * weights
    if beta:
        losses = losses + beta * kl
    sums = over_answers(losses, mask)
    divisor = len(sums)
    if normaliser == "answer":
        sums = sums / tokens
    elif normaliser == "tokens":
        divisor = int(mask.sum())
    else:
        assert max_length is not None
        divisor *= max_length
    total, cut = sums.sum(), float((clipped & mask).sum() / written)
    return Policy(total / max(divisor, 1), distance, cut, total, divisor)


def _of_answers(log_ratio: PerToken, advantages: Tensor, low: float, high: float, distance: float) -> Policy:
    if advantages.ndim != 1:
        raise ValueError('ratio="answer" needs an advantage an answer, not a token')
    losses, clipped = clipped_ratio(log_ratio.sum(dim=-1).exp(), advantages, low, high)
    return Policy(losses.mean(), distance, float(clipped.float().mean()), losses.sum(), len(losses))


def value_loss(
    values: PerToken, old: PerToken, returns: PerToken, mask: Mask, clip: float | None = 0.2
) -> Float[Tensor, ""]:
    """Half the squared error of the value head, the mean over tokens. With `clip` the larger of that error and the
    error of a value that moved by at most `clip` since the answers were drawn, as the code of Schulman et al. 2017 has
    it.
    """
    return value_sum(values, old, returns, mask, clip) / mask.sum().clamp(min=1)


def value_sum(
    values: PerToken, old: PerToken, returns: PerToken, mask: Mask, clip: float | None = 0.2
) -> Float[Tensor, ""]:  # fmt: skip
    """The sum that `value_loss` is the mean of."""
    errors = (values - returns).pow(2)
    if clip is not None:
        near = old + (values - old).clamp(-clip, clip)
        errors = torch.max(errors, (near - returns).pow(2))
    return 0.5 * over_answers(errors, mask).sum()


def truncated_weights(trainer: PerToken, engine: PerToken, most: float = 2.0) -> PerToken:
    """min(p_trainer / p_engine, most): mends that the engine drew from another distribution than the trainer knows.

    With top-p the engine's probabilities are larger by the share of mass that it kept, and the ratio is that share.
    """
    if not most > 0:
        raise ValueError(f"most={most} must be above 0")
    return (trainer - engine).detach().exp().clamp(max=most)
