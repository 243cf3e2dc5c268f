"""Experts: many MLPs, of which a token meets k. The products are made in three ways, with the same numbers.

Names say shapes: N tokens, E experts, k experts of a token, C the residual stream, F the width inside an expert; a pair
is a token with one of its experts, of which there are N k.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from llm_moe.router import counts

Tokens = Float[Tensor, "tokens hidden"]
Chosen = Int[Tensor, "tokens chosen"]
Weights = Float[Tensor, "tokens chosen"]


class Experts(nn.Module):
    """E MLPs of the form down(silu(gate(x)) * up(x)), their weights in two tensors as transformers holds them.

    Args:
        num_experts: E.
        hidden_size: C.
        intermediate_size: F.
        form: "loop", "batched" or "grouped".

    Raises:
        ValueError: for "grouped" with widths that the grouped product does not take.
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, form: str = "grouped") -> None:
        super().__init__()
        if form == "grouped" and (hidden_size % 8 or intermediate_size % 8):
            wrong = f'form="grouped" with widths of {hidden_size} and {intermediate_size}'
            raise ValueError(f'{wrong}: its rows must be multiples of 16 bytes; take multiples of 8, or form="batched"')
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))
        self.form = form
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=0.02)

    def forward(self, x: Tokens, experts: Chosen, weights: Weights) -> Tokens:
        """The sum over each token's experts, times their weights. A weight of 0 is a choice that is not served."""
        made = {"loop": looped, "batched": batched, "grouped": grouped}[self.form]
        return made(x, experts, weights, self.gate_up_proj, self.down_proj)


def looped(x: Tokens, experts: Chosen, weights: Weights, gate_up: Tensor, down: Tensor) -> Tokens:
    """One expert after the other, each on the tokens that chose it."""
    out = torch.zeros_like(x)
    for number in range(len(gate_up)):
        token, place = torch.where(experts == number)
        if len(token):
            gate, up = F.linear(x[token], gate_up[number]).chunk(2, dim=-1)
            made = F.linear(F.silu(gate) * up, down[number]) * weights[token, place, None]
            out = out.index_add(0, token, made.to(out.dtype))
    return out


def batched(x: Tokens, experts: Chosen, weights: Weights, gate_up: Tensor, down: Tensor) -> Tokens:
    """All experts in one batched product: each has as many rows as the fullest one needs, the rest is filled up."""
    order, token, sent = by_expert(experts, len(gate_up))
    rows = int(sent.max())
    chosen = experts.flatten()[order]
    place = torch.arange(len(order), device=x.device) - (sent.cumsum(0) - sent)[chosen]  # of a pair among its expert's
    filled = x.new_zeros(len(gate_up), rows, x.shape[1]).index_put((chosen, place), x[token])  # (E, rows, C)
    gate, up = torch.bmm(filled, gate_up.transpose(1, 2)).chunk(2, dim=-1)
    made = torch.bmm(F.silu(gate) * up, down.transpose(1, 2))  # (E, rows, C)
    return _gathered(x, made[chosen, place], order, token, weights)


def grouped(x: Tokens, experts: Chosen, weights: Weights, gate_up: Tensor, down: Tensor) -> Tokens:
    """The pairs sorted by expert, and one grouped product over rows of different numbers; nothing is filled up."""
    order, token, sent = by_expert(experts, len(gate_up))
    ends = sent.cumsum(0).to(torch.int32)
    gate, up = F.grouped_mm(x[token], gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    made = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    return _gathered(x, made, order, token, weights)


def by_expert(
    experts: Chosen, num_experts: int
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " experts"]]:  # fmt: skip
    """The pairs in the order of their experts: their numbers, their tokens, and how many each expert has."""
    order = experts.flatten().argsort(stable=True)
    return order, order // experts.shape[1], counts(experts, num_experts)


def _gathered(x: Tokens, made: Float[Tensor, "pairs hidden"], order: Tensor, token: Tensor, weights: Weights) -> Tokens:
    made = made * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, token, made.to(x.dtype))
