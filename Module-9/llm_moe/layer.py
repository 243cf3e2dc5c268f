"""The sparse layer: a router, experts, and what they share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from llm_core.config import GPTConfig
from llm_core.model import SwiGLU
from torch import Tensor, nn

from llm_moe.balance import bias_step
from llm_moe.capacity import capacity, within
from llm_moe.config import SparseConfig
from llm_moe.experts import Experts
from llm_moe.router import Router, Routing, counts, route


class SparseMLP(nn.Module):
    """Takes the place of a block's MLP. Parameter names are those of transformers' `MixtralSparseMoeBlock`.

    Attributes:
        routing: of the last call, with its gradients; None before the first.
        dropped: share of the last call's choices that a full expert did not serve.
        bias: of each expert, for the choice alone; moved by `move_bias`.

    Args:
        config: of the model.
        sparse: of the layer.
    """

    def __init__(self, config: GPTConfig, sparse: SparseConfig) -> None:
        super().__init__()
        self.sparse = sparse
        inside = sparse.moe_intermediate_size or config.intermediate_size
        self.gate = Router(config.hidden_size, sparse.num_experts)
        self.experts = Experts(sparse.num_experts, config.hidden_size, inside, sparse.form)
        self.shared_expert: SwiGLU | None = None
        if sparse.shared_intermediate_size:
            values = {**vars(config), "intermediate_size": sparse.shared_intermediate_size}
            self.shared_expert = SwiGLU(GPTConfig(**values))
        self.register_buffer("bias", torch.zeros(sparse.num_experts), persistent=sparse.balance == "bias")
        self.bias: Tensor
        self.routing: Routing | None = None
        self.dropped = 0.0

    def forward(self, x: Float[Tensor, "batch time hidden"]) -> Float[Tensor, "batch time hidden"]:
        sparse, flat = self.sparse, x.flatten(0, 1)  # (N, C)
        bias = self.bias if sparse.balance == "bias" else None
        routing = route(self.gate(flat), sparse.num_experts_per_tok, sparse.norm_topk_prob, bias)
        weights = routing.weights.to(x.dtype)
        if sparse.capacity_factor is not None:
            most = capacity(len(flat), sparse.num_experts, sparse.num_experts_per_tok, sparse.capacity_factor)
            served = within(routing.experts, sparse.num_experts, most)
            weights = weights * served
            self.dropped = float((~served).float().mean())
        self.routing = routing
        out = self.experts(flat, routing.experts, weights).view_as(x)
        return out if self.shared_expert is None else out + self.shared_expert(x)

    @torch.no_grad()
    def move_bias(self) -> None:
        """A step towards balance, from what the last call sent where; for balance="bias"."""
        if self.routing is None:
            raise RuntimeError("no token was routed yet; call the layer first")
        self.bias.copy_(bias_step(self.bias, counts(self.routing.experts, len(self.bias)), self.sparse.bias_step))
