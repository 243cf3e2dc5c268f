"""How a token chooses its experts.

Names say shapes: N tokens, E experts, k experts of a token, C the residual stream.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class Routing(NamedTuple):
    """Where tokens go.

    Attributes:
        logits: of the router.
        probs: their softmax, over all experts.
        experts: the k that each token is sent to, the likeliest first.
        weights: what their outputs are multiplied by.
    """

    logits: Float[Tensor, "tokens experts"]
    probs: Float[Tensor, "tokens experts"]
    experts: Int[Tensor, "tokens chosen"]
    weights: Float[Tensor, "tokens chosen"]


def route(
    logits: Float[Tensor, "tokens experts"], k: int, norm_topk_prob: bool = True,
    bias: Float[Tensor, " experts"] | None = None,
) -> Routing:  # fmt: skip
    """The k experts with the largest probabilities, and their weights.

    Shazeer et al. 2017, equations 3 to 5, without noise (arXiv:1701.06538), in the order of Mixtral: softmax over all
    experts, then the choice, then the division by the sum of the chosen.

    Args:
        logits: of the router, of any width; the softmax is made in float32.
        k: experts of a token.
        norm_topk_prob: whether the weights of a token add up to 1.
        bias: added for the choice alone: it says where a token goes, and not what that is worth. Wang et al. 2024,
            section 3 (arXiv:2408.15664).
    """
    probs = logits.float().softmax(dim=-1)
    _, experts = (probs if bias is None else probs + bias).topk(k, dim=-1)
    weights = probs.gather(-1, experts)
    if norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routing(logits, probs, experts, weights)


class Router(nn.Module):
    """A row of weights for each expert; `weight` as in transformers' routers.

    Args:
        hidden_size: C.
        num_experts: E.
    """

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens experts"]:
        return F.linear(x, self.weight)


def counts(experts: Int[Tensor, "tokens chosen"], num_experts: int) -> Int[Tensor, " experts"]:
    """How many tokens each expert is sent."""
    return torch.bincount(experts.flatten(), minlength=num_experts)
