"""Sparse models as folders of transformers (Mixtral), written and read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from llm_core.config import GPTConfig
from llm_core.generate import stop_ids
from llm_core.model import GPT
from llm_core.store.hf import pretrained, tokenizer_of_folder
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from llm_moe.config import SparseConfig
from llm_moe.model import sparse_gpt, sparse_layers


def save_mixtral(model: GPT, tokenizer: Any, folder: Path | str) -> None:
    """Write what `MixtralForCausalLM.from_pretrained(folder)` loads, with the same logits.

    Its configuration asks for the routers' logits, so that a training with transformers balances the experts: with
    Mixtral's own default it does not.

    Raises:
        ValueError: for a model that Mixtral is not: without sparse layers, with a shared expert, with a capacity, with
            a bias, or with weights that do not add up to 1.
    """
    layers = sparse_layers(model)
    if len(layers) != model.config.num_hidden_layers:
        raise ValueError(
            f"{len(layers)} of {model.config.num_hidden_layers} blocks are sparse, and all of Mixtral's are"
        )
    sparse = layers[0].sparse
    for name, wrong in (
        ("shared_intermediate_size", sparse.shared_intermediate_size), ("capacity_factor", sparse.capacity_factor),
        ("norm_topk_prob=False", not sparse.norm_topk_prob), ('balance="bias"', sparse.balance == "bias"),
    ):  # fmt: skip
        if wrong:
            raise ValueError(f"Mixtral has no {name}; a folder would give other numbers")
    with torch.device("meta"):
        theirs = MixtralForCausalLM(_their_config(model, sparse, tokenizer))
    theirs.load_state_dict(model.state_dict(), assign=True)
    theirs.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _their_config(model: GPT, sparse: SparseConfig, tokenizer: Any) -> MixtralConfig:
    sizes = asdict(model.config)
    sizes["intermediate_size"] = sparse.moe_intermediate_size or sizes["intermediate_size"]
    theta = sizes.pop("rope_theta")
    ends: dict[str, Any] = {
        name: getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    found = stop_ids(model)
    if found:
        ends["eos_token_id"] = list(found) if len(found) > 1 else found[0]
    return MixtralConfig(
        **sizes, **ends, num_local_experts=sparse.num_experts, num_experts_per_tok=sparse.num_experts_per_tok,
        rope_parameters={"rope_type": "default", "rope_theta": theta}, output_router_logits=True,
        router_aux_loss_coef=sparse.router_aux_loss_coef if sparse.balance == "loss" else 0.0, sliding_window=None,
    )  # fmt: skip


def load_mixtral(folder: Path | str) -> tuple[GPT, Any]:
    """A sparse model of a Mixtral's folder, in evaluation mode, and its tokenizer (None where it has none).

    Raises:
        ValueError: for another architecture, and for a Mixtral that ours is not, with the key.
    """
    theirs = pretrained(AutoConfig, folder)
    if not isinstance(theirs, MixtralConfig):
        raise ValueError(f"{folder} is a {theirs.model_type}, and this reads Mixtral's folders")
    rope = dict(theirs.rope_parameters or {})
    head = theirs.head_dim or theirs.hidden_size // theirs.num_attention_heads
    for key, given, fixed in (
        ("hidden_act", theirs.hidden_act, "silu"), ("sliding_window", theirs.sliding_window, None),
        ("rope_type", rope.get("rope_type", "default"), "default"),
        ("head_dim", head, theirs.hidden_size // theirs.num_attention_heads),
        ("router_jitter_noise", theirs.router_jitter_noise, 0.0),
    ):  # fmt: skip
        if given != fixed:
            raise ValueError(f"{folder}: {key}={given!r}, and this model knows {fixed!r} only; take transformers'")
    values = {name: getattr(theirs, name) for name in GPTConfig.__dataclass_fields__ if name != "rope_theta"}
    config = GPTConfig(**values, rope_theta=rope.get("rope_theta", theirs.default_theta))
    coefficient = theirs.router_aux_loss_coef if theirs.output_router_logits else 0.0
    sparse = SparseConfig(
        theirs.num_local_experts, theirs.num_experts_per_tok, balance="loss" if coefficient else "none",
        router_aux_loss_coef=coefficient,
    )  # fmt: skip
    model = sparse_gpt(config, sparse)
    model.load_state_dict(pretrained(AutoModelForCausalLM, folder, dtype=torch.float32).state_dict())
    return model.eval(), tokenizer_of_folder(folder)
