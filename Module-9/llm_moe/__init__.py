"""Module 9's helper package: many experts, of which a token meets a few.

`from llm_moe import SparseConfig, sparse_gpt, upcycle`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_moe.balance import balance_loss, concatenated_balance_loss
    from llm_moe.config import SparseConfig
    from llm_moe.experts import Experts
    from llm_moe.layer import SparseMLP
    from llm_moe.model import sparse_gpt, upcycle
    from llm_moe.router import Router, route
    from llm_moe.training import SparseBabyGPT

__all__ = [
    "Experts", "Router", "SparseBabyGPT", "SparseConfig", "SparseMLP", "balance_loss", "concatenated_balance_loss",
    "route", "sparse_gpt", "upcycle",
]  # fmt: skip

export(__name__, {
    "Experts": "experts", "Router": "router", "SparseBabyGPT": "training", "SparseConfig": "config",
    "SparseMLP": "layer", "balance_loss": "balance", "concatenated_balance_loss": "balance", "route": "router",
    "sparse_gpt": "model", "upcycle": "model",
})  # fmt: skip
