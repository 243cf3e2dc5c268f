"""What a GPT holds and computes, from its configuration, before it is built: parameters, FLOPs, saved activations.

Letters in formulas: C the residual stream, I inside the MLP, L layers, H heads, K heads of keys and values, V the
vocabulary, b rows of a batch, T positions; N parameters, D tokens. A FLOP is one addition or multiplication, so a
product of (m, k) and (k, n) takes 2 m k n of them.
"""

from __future__ import annotations

from llm_core.config import GPTConfig

# From a laptop's model to Llama 2's 7B. The last three have published shapes: TinyLlama-1.1B, Llama-3.2-3B, Llama-2-7B.
CONFIGS: dict[str, GPTConfig] = {
    "1M": GPTConfig(1_024, 128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2),
    "10M": GPTConfig(
        4_096, 320, num_hidden_layers=7, num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=512
    ),
    "100M": GPTConfig(
        32_000, 768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=1_024
    ),
    "350M": GPTConfig(
        32_000, 1_024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=4,
        max_position_embeddings=2_048,
    ),
    "1B": GPTConfig(
        32_000, 2_048, 5_632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        max_position_embeddings=2_048, tie_word_embeddings=False,
    ),
    "3B": GPTConfig(
        128_256, 3_072, 8_192, num_hidden_layers=28, num_attention_heads=24, num_key_value_heads=8,
        max_position_embeddings=4_096,
    ),
    "7B": GPTConfig(
        32_000, 4_096, 11_008, num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=4_096,
        tie_word_embeddings=False,
    ),
}  # fmt: skip


def parameter_parts(config: GPTConfig) -> dict[str, int]:
    """Parameters by what they are for; their sum is N.

    Attention has 2 C² + 2 C (K C / H) a layer, the MLP 3 C I, and there are 2 L + 1 norms of C. A tied head has none of
    its own.
    """
    C, layers = config.hidden_size, config.num_hidden_layers
    keys = config.num_key_value_heads * config.head_dim
    return {
        "embedding": config.vocab_size * C,
        "attention": layers * (2 * C * C + 2 * C * keys),
        "mlp": layers * 3 * C * config.intermediate_size,
        "norms": (2 * layers + 1) * C,
        "head": 0 if config.tie_word_embeddings else config.vocab_size * C,
    }


def num_parameters(config: GPTConfig) -> int:
    """N: all parameters, a tied matrix once."""
    return sum(parameter_parts(config).values())


def matmul_parameters(config: GPTConfig) -> int:
    """M: parameters of matrices that every token is multiplied by.

    The head is one of them, tied or not. The embedding is not: a row is looked up. Nor are the norms.
    """
    parts = parameter_parts(config)
    return parts["attention"] + parts["mlp"] + config.vocab_size * config.hidden_size


def flops_per_token(config: GPTConfig, time: int, training: bool = True) -> int:
    """FLOPs of the matrix products for one token in a row of `time`: 6 M + 12 L C T, or 2 M + 4 L C T without training.

    The scores and their use count as full T x T products, though half of them are masked: the convention of Chowdhery
    et al. 2022, appendix B, so that utilisations compare. A backward pass has two products for each one forward.

    Args:
        config: sizes.
        time: T.
        training: forward and backward pass; else the forward pass alone.
    """
    forward = 2 * matmul_parameters(config) + 4 * config.num_hidden_layers * config.hidden_size * time
    return 3 * forward if training else forward


def activation_bytes(config: GPTConfig, batch: int, time: int) -> int:
    """Bytes that a forward pass in float32 keeps for the backward pass.

    4 b T (L (8 C + 2 K C / H + 4 I + H + 2) + 3 C + V + 1), with fused attention, which keeps no T x T matrix. A norm
    keeps its input, a root and the normalised input, and its output is the input of the projections; attention keeps
    queries, keys, values, its output and a sum a head; the MLP keeps gate, silu(gate), up and their product; the loss
    keeps the log-probabilities. Left out are the ids and the tables of the rotary positions, which all rows share.
    """
    C, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    layer = 8 * C + 2 * keys + 4 * config.intermediate_size + config.num_attention_heads + 2
    return 4 * batch * time * (config.num_hidden_layers * layer + 3 * C + config.vocab_size + 1)
