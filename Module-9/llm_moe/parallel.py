"""Experts spread over processes: tokens travel to their experts and back (all-to-all), weights stay.

Lepikhin et al. 2020, section 3.2 (arXiv:2006.16668).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from llm_moe.experts import Experts, by_expert
from llm_moe.layer import SparseMLP
from llm_moe.router import Routing, route


class Exchange(torch.autograd.Function):
    """Rows to other ranks; in the backward pass their gradients come back the same way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows in the order of the ranks that they go to, and how many each gets and gives."""
        ctx.splits = sent, received
        out = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(out, rows.contiguous(), received, sent)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        sent, received = ctx.splits
        back = grad.new_empty(sum(sent), *grad.shape[1:])
        dist.all_to_all_single(back, grad.contiguous(), sent, received)
        return back, None, None


class ExpertParallelMLP(nn.Module):
    """A sparse layer of which this rank holds E / ranks experts, and the whole router.

    Each rank has tokens of its own. The gradients of its experts come from the tokens of all ranks, and are whole;
    those of the router come from its own tokens, and are to be summed over the ranks.

    Attributes:
        routing: of this rank's tokens in the last call.
        wire_bytes: that the last call's forward pass sent to other ranks, counts not included; the backward pass sends
            as much.

    Args:
        layer: the whole layer, equal on every rank; it stays as it is.

    Raises:
        ValueError: when the experts do not divide among the ranks, or the layer has what is not made here.
    """

    def __init__(self, layer: SparseMLP) -> None:
        super().__init__()
        self.sparse, ranks, rank = layer.sparse, dist.get_world_size(), dist.get_rank()
        if self.sparse.num_experts % ranks:
            raise ValueError(f"num_experts={self.sparse.num_experts} do not divide among {ranks} ranks")
        if self.sparse.capacity_factor is not None or layer.shared_expert is not None:
            raise ValueError("expert parallelism here has neither capacity_factor nor a shared expert; leave them out")
        self.ranks, self.rank, own = ranks, rank, self.sparse.num_experts // ranks
        _, hidden, inside = layer.experts.down_proj.shape
        self.gate = layer.gate
        self.experts = Experts(own, hidden, inside, self.sparse.form)
        mine = slice(rank * own, (rank + 1) * own)
        with torch.no_grad():
            self.experts.gate_up_proj.copy_(layer.experts.gate_up_proj[mine])
            self.experts.down_proj.copy_(layer.experts.down_proj[mine])
        self.register_buffer("bias", layer.bias.clone(), persistent=False)
        self.bias: Tensor
        self.routing: Routing | None = None
        self.wire_bytes = 0

    def forward(self, x: Float[Tensor, "batch time hidden"]) -> Float[Tensor, "batch time hidden"]:
        sparse, flat = self.sparse, x.flatten(0, 1)  # (N, C)
        bias = self.bias if sparse.balance == "bias" else None
        routing = self.routing = route(self.gate(flat), sparse.num_experts_per_tok, sparse.norm_topk_prob, bias)
        order, token, counted = by_expert(routing.experts, sparse.num_experts)
        table = counted.view(self.ranks, -1)  # (ranks, experts of each)
        theirs = torch.empty_like(table)
        dist.all_to_all_single(theirs, table.contiguous())  # what each rank sends to each expert here
        sent, received = table.sum(dim=1).tolist(), theirs.sum(dim=1).tolist()
        rows = Exchange.apply(flat[token], sent, received)  # from rank 0, by expert, then from rank 1, ...
        own = torch.arange(table.shape[1], device=x.device).repeat(self.ranks)
        chosen = own.repeat_interleave(theirs.flatten())
        made = self.experts(rows, chosen[:, None], torch.ones(len(rows), 1, dtype=x.dtype, device=x.device))
        back = Exchange.apply(made, received, sent)
        away = sum(sent) - sent[self.rank], sum(received) - received[self.rank]
        self.wire_bytes = sum(away) * flat.shape[1] * flat.element_size()
        weighted = back * routing.weights.to(x.dtype).flatten()[order, None]
        return torch.zeros_like(flat).index_add(0, token, weighted).view_as(x)


def expected_wire_bytes(tokens: int, k: int, ranks: int, hidden: int, bytes_a_number: int = 4) -> float:
    """What a rank sends in a forward pass when its tokens choose at random: all but 1 / ranks of its N k pairs go away
    to other ranks, and as many that came from there go back."""
    return 2 * tokens * k * (1 - 1 / ranks) * hidden * bytes_a_number
