"""What a language model's loss measures, from the formula up, and the loss that training uses.

The shift between a position and the token it predicts is made in `shift`, and nowhere else in the course.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from llm_data.rows.documents import IGNORE_INDEX
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Distribution = Float[Tensor, " outcomes"]
Scalar = Float[Tensor, ""]


def entropy(p: Distribution) -> Scalar:
    """H(P) = -sum p ln p, in nats: what an outcome of P tells on average. Shannon 1948, section 6."""
    return -torch.xlogy(p, p).sum()


def cross_entropy(p: Distribution, q: Distribution) -> Scalar:
    """H(P, Q) = -sum p ln q, in nats: the mean cost of outcomes of P coded for Q. Infinite where Q has a 0."""
    return -torch.xlogy(p, q).sum()


def kl_divergence(p: Distribution, q: Distribution) -> Scalar:
    """KL(P || Q) = H(P, Q) - H(P), in nats: what it costs to take Q for P. Never negative, 0 only for Q = P."""
    return cross_entropy(p, q) - entropy(p)


def perplexity(loss: float) -> float:
    """exp(loss in nats): the number of equally likely tokens that would be as hard to guess. `inf` where that is too
    large for a float."""
    return math.inf if loss > 709 else math.exp(loss)


def token_losses(logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """-ln softmax(logits)[target] of each token, in nats, from the formula: logsumexp(logits) - logits[target].

    In float32, whatever the logits are. A token whose target is -100 costs nothing.
    """
    wide = logits.float()
    chosen = wide.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(targets == IGNORE_INDEX, 0.0, wide.logsumexp(dim=1) - chosen)


def shift(labels: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """The target of each position: the label after it; -100 at the last position, after which there is none."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def causal_loss(
    logits: Float[Tensor, "batch time vocab"], labels: Int[Tensor, "batch time"]
) -> tuple[Scalar, Int[Tensor, ""]]:
    """Sum of the targets' losses, in nats, and the number of targets.

    The mean is left to the caller, who may have several batches or devices: a mean of their means would weigh a target
    by how few there are beside it.

    Args:
        logits: position t's are for the token after it.
        labels: the input ids, -100 for what is no target; not yet shifted.
    """
    targets = shift(labels).flatten()
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return total, (targets != IGNORE_INDEX).sum()


def chunked_causal_loss(
    hidden: Float[Tensor, "batch time hidden"],
    head: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "batch time"],
    chunk: int = 1024,
) -> tuple[Scalar, Int[Tensor, ""]]:
    """`causal_loss(hidden @ head.T, labels)` without the whole logits: `chunk` tokens at a time, in the backward pass
    computed again.

    The logits of a batch take tokens x vocab_size numbers, and so does their gradient: for large vocabularies more than
    all the model's activations.

    Args:
        hidden: the last norm's output.
        head: the matrix of the head.
        labels: as for `causal_loss`.
        chunk: tokens whose logits exist at a time.
    """
    targets = shift(labels).flatten()
    total = hidden.new_zeros((), dtype=torch.float32)
    for x, target in zip(hidden.flatten(0, 1).split(chunk), targets.split(chunk), strict=True):
        total = total + checkpoint(_sum_loss, x, head, target, use_reentrant=False)
    return total, (targets != IGNORE_INDEX).sum()


def _sum_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ head.T).float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
