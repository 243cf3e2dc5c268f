"""A GPT whose MLPs are sparse layers: made new, or of a dense one that was trained."""

from __future__ import annotations

import copy

import torch
from llm_core.config import GPTConfig
from llm_core.model import GPT, initialise
from torch import Tensor, nn

from llm_moe.balance import balance_loss, z_loss
from llm_moe.config import SparseConfig
from llm_moe.layer import SparseMLP
from llm_moe.router import Routing


def sparse_gpt(config: GPTConfig, sparse: SparseConfig) -> GPT:
    """A new model with experts in every block; matrices are drawn as the dense model's are."""
    model = GPT(config)
    for block in model.model.layers:
        block.mlp = SparseMLP(config, sparse)
    initialise(model, config.initializer_range)
    for name, weight in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj", "mlp.gate.weight")):
            nn.init.normal_(weight, std=config.initializer_range)
    return model


@torch.no_grad()
def upcycle(dense: GPT, sparse: SparseConfig) -> GPT:
    """A sparse model that begins as a trained dense one: each expert is a copy of its MLP, the router is new.

    With weights that add up to 1 (`norm_topk_prob`) the model says what the dense one says, whatever the router does.
    Komatsuzaki et al. 2022, section 3 (arXiv:2212.05055).

    Args:
        dense: stays as it is.
        sparse: its `moe_intermediate_size` must be the dense model's, or 0.

    Raises:
        ValueError: for experts of another width, weights that do not add up to 1, or a shared expert, which would add
            to what the dense model says.
    """
    config = dense.config
    if sparse.moe_intermediate_size not in (0, config.intermediate_size):
        wrong = (
            f"moe_intermediate_size={sparse.moe_intermediate_size}, and the dense MLP has {config.intermediate_size}"
        )
        raise ValueError(f"{wrong}; leave it at 0")
    if not sparse.norm_topk_prob or sparse.shared_intermediate_size:
        raise ValueError(
            "a model that is upcycled needs norm_topk_prob=True and no shared expert, or it begins elsewhere"
        )
    model = copy.deepcopy(dense)
    for block in model.model.layers:
        made = SparseMLP(config, sparse)
        both = torch.cat([block.mlp.gate_proj.weight, block.mlp.up_proj.weight])  # type: ignore[list-item, union-attr]
        made.experts.gate_up_proj.copy_(both.expand_as(made.experts.gate_up_proj))
        made.experts.down_proj.copy_(block.mlp.down_proj.weight.expand_as(made.experts.down_proj))  # type: ignore[union-attr, operator]
        block.mlp = made
    return model.train(dense.training)


def sparse_layers(model: nn.Module) -> list[SparseMLP]:
    """The sparse layers, in the model's order."""
    return [each for each in model.modules() if isinstance(each, SparseMLP)]


def routings(model: nn.Module) -> list[Routing]:
    """Where each layer sent the tokens of the last call.

    Raises:
        RuntimeError: before the first call, and for a model without sparse layers.
    """
    found = [each.routing for each in sparse_layers(model)]
    if not found or any(each is None for each in found):
        raise RuntimeError("nothing was routed: the model has no sparse layers, or was not called yet")
    return [each for each in found if each is not None]


def router_loss(model: nn.Module, mask: Tensor | None = None) -> Tensor:
    """What a step adds to the loss for the routers of the last call: the mean over layers of what their settings ask
    for."""
    layers = sparse_layers(model)
    parts: list[Tensor] = []
    for layer, routing in zip(layers, routings(model), strict=True):
        asked = layer.sparse
        balanced = asked.router_aux_loss_coef if asked.balance == "loss" else 0.0
        parts.append(balanced * balance_loss(routing, mask) + asked.router_z_loss_coef * z_loss(routing.logits))
    return torch.stack(parts).mean()
