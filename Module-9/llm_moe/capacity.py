"""Experts that take so many tokens and no more: who is dropped, and how many that will be."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def capacity(tokens: int, num_experts: int, k: int, factor: float) -> int:
    """The most tokens that an expert takes: `factor` times those in balance, rounded up. Fedus et al. 2021, eq. 3."""
    return math.ceil(factor * tokens * k / num_experts)


def within(experts: Int[Tensor, "tokens chosen"], num_experts: int, most: int) -> Bool[Tensor, "tokens chosen"]:
    """Which choices are served: of each expert the first `most`, all first choices before any second one.

    Lepikhin et al. 2020, algorithm 1 (arXiv:2006.16668).
    """
    order = experts.T.flatten()  # the first choices of all tokens, then the second ones
    one_hot = torch.zeros(len(order), num_experts, dtype=torch.long, device=order.device)
    place = one_hot.scatter_(1, order[:, None], 1).cumsum(dim=0).gather(1, order[:, None])[:, 0]  # counted from 1
    return (place <= most).view(experts.shape[1], -1).T


def expected_dropped(tokens: int, num_experts: int, factor: float) -> float:
    """The share of tokens that is dropped when each chooses one of E experts at random.

    An expert's tokens are binomial(N, 1 / E); what is beyond its capacity is dropped. Experts are alike, so that one
    of them stands for all: E / N times the mean of max(0, n - capacity).
    """
    most, p = capacity(tokens, num_experts, 1, factor), 1 / num_experts
    over = 0.0
    for n in range(most + 1, tokens + 1):
        log = (
            math.lgamma(tokens + 1) - math.lgamma(n + 1) - math.lgamma(tokens - n + 1)
            + n * math.log(p) + (tokens - n) * (math.log1p(-p) if num_experts > 1 else 0.0)
        )  # fmt: skip
        over += (n - most) * math.exp(log)
    return num_experts * over / tokens
