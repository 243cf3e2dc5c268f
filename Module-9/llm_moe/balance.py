"""What keeps tokens from all choosing the same expert, and how the balance is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_moe.router import Routing, counts


def balance_loss(routing: Routing, mask: Tensor | None = None) -> Float[Tensor, ""]:
    """E times the sum over experts of (share of tokens sent) x (mean probability), for one layer.

    Fedus et al. 2021, equations 4 to 6 (arXiv:2101.03961), with all k choices counted as transformers does: in balance
    each expert is sent k / E of the tokens and has a probability of 1 / E, which gives k. The shares have no gradient;
    the probabilities of experts that are sent much are pushed down.

    Args:
        routing: of a layer.
        mask: (N,), 1 for tokens that count; None for all.
    """
    experts = routing.probs.shape[-1]
    kept = torch.ones(len(routing.probs), device=routing.probs.device) if mask is None else mask.flatten().float()
    sent = torch.zeros(experts, device=kept.device).scatter_add_(
        0, routing.experts.flatten(), kept.repeat_interleave(routing.experts.shape[-1])
    )
    total = kept.sum().clamp(min=1)
    return experts * (sent / total * (routing.probs * kept[:, None]).sum(dim=0) / total).sum()


def concatenated_balance_loss(routings: Sequence[Routing], mask: Tensor | None = None) -> Float[Tensor, ""]:
    """The same over the tokens of all layers together, as transformers' `load_balancing_loss_func` has it.

    Layers that collapsed on different experts look balanced here: `balance_loss` of each layer sees it.
    """
    joined = Routing(*(torch.cat(parts) for parts in zip(*routings, strict=True)))
    return balance_loss(joined, None if mask is None else mask.flatten().repeat(len(routings)))


def z_loss(logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, ""]:
    """The mean of the squared logsumexp of the router's logits: it holds them near 0, where a softmax in 16 bits is
    still exact. Zoph et al. 2022, ST-MoE, equation 5 (arXiv:2202.08906).
    """
    return logits.float().logsumexp(dim=-1).pow(2).mean()


def bias_step(
    bias: Float[Tensor, " experts"], sent: Int[Tensor, " experts"], step: float
) -> Float[Tensor, " experts"]:  # fmt: skip
    """The bias after a step: up for experts with fewer tokens than the mean, down for those with more.

    No loss and no gradient. Wang et al. 2024, algorithm 1 (arXiv:2408.15664).
    """
    return bias + step * torch.sign(sent.float().mean() - sent.float())


def load(routing: Routing) -> Float[Tensor, " experts"]:
    """Tokens of each expert, divided by those it would have in balance: 1 everywhere is balance, E / k a collapse."""
    sent = counts(routing.experts, routing.probs.shape[-1]).float()
    return sent / sent.mean()
