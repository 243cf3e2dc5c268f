"""What experts cost: all of them in memory, a few of them in work, and how many of them a batch reads.

Names: E experts, k of a token, C the residual stream, F the width inside an expert, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

from llm_core.config import GPTConfig

from llm_moe.config import SparseConfig


class Parameters(NamedTuple):
    """Numbers of a model: held in memory, and used by one token (an embedding's one row is not counted as used)."""

    total: int
    active: int


def parameters(config: GPTConfig, sparse: SparseConfig) -> Parameters:
    """By formula: attention and norms as in the dense model, E experts of 3 C F held and k of them used, a router."""
    c, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    attention = 2 * c * c + 2 * c * kv + 2 * c  # with the block's two norms
    expert = 3 * c * (sparse.moe_intermediate_size or config.intermediate_size)
    shared, router = 3 * c * sparse.shared_intermediate_size, sparse.num_experts * c
    head = config.vocab_size * c
    held, used = (
        config.num_hidden_layers * (attention + router + shared + number * expert) + c + head
        for number in (sparse.num_experts, sparse.num_experts_per_tok)
    )
    return Parameters(held + (0 if config.tie_word_embeddings else head), used)


def flops_per_token(config: GPTConfig, sparse: SparseConfig) -> int:
    """Of a forward pass: 2 for each number that is used in a product; attention's own products, which grow with the
    context, are left out, and norms are no products."""
    norms = config.num_hidden_layers * 2 * config.hidden_size + config.hidden_size
    return 2 * (parameters(config, sparse).active - norms)


def same_work(config: GPTConfig, sparse: SparseConfig) -> int:
    """The width inside an expert with which k experts do the work of the dense MLP."""
    return config.intermediate_size // sparse.num_experts_per_tok


def distinct_experts(tokens: float, num_experts: int, k: int) -> float:
    """How many experts a batch of tokens meets in a layer, when each chooses k of E at random: E (1 - (1 - k/E)^B)."""
    return num_experts * (1 - (1 - k / num_experts) ** tokens)


def read_per_step(config: GPTConfig, sparse: SparseConfig, batch: int, bytes_a_number: int = 2) -> float:
    """Bytes of weights that one step of writing reads for a batch of requests: everything once, of the experts those
    that some token chose."""
    expert = 3 * config.hidden_size * (sparse.moe_intermediate_size or config.intermediate_size)
    rest = parameters(config, sparse).active - config.num_hidden_layers * sparse.num_experts_per_tok * expert
    met = distinct_experts(batch, sparse.num_experts, sparse.num_experts_per_tok)
    return bytes_a_number * (rest + config.num_hidden_layers * met * expert)
