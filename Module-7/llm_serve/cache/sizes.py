"""What keys and values cost: bytes of a token, and what each way of keeping them wastes."""

from __future__ import annotations

from collections.abc import Sequence

from llm_core.config import GPTConfig


def kv_bytes_per_token(config: GPTConfig, bytes_per_number: float = 2) -> float:
    """Bytes that one position keeps: a key and a value for each of K heads in each of L layers, 2 L K D numbers.

    Args:
        config: of the model; with K = H it is plain multi-head attention, with K < H grouped queries (GQA).
        bytes_per_number: 4 for float32, 2 for bfloat16; for 8 bits with one float32 scale a head, 1 + 4 / D.
    """
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_per_number


def mla_bytes_per_token(layers: int, latent: int, rope_dim: int, bytes_per_number: float = 2) -> float:
    """The same for multi-head latent attention: a layer keeps one compressed vector, and one key that holds the
    positions, for all heads together. DeepSeek-AI 2024, DeepSeek-V2, section 2.1 (arXiv:2405.04434)."""
    return layers * (latent + rope_dim) * bytes_per_number


def reserved_waste(lengths: Sequence[int], max_len: int) -> float:
    """Share of a preallocated cache that holds nothing: each request has room for `max_len` tokens.

    Raises:
        ValueError: for a request longer than the room.
    """
    if not lengths or max(lengths) > max_len:
        raise ValueError(f"lengths of at most max_len={max_len} are wanted, and at least one; there are {lengths}")
    return 1 - sum(lengths) / (len(lengths) * max_len)


def paged_waste(lengths: Sequence[int], block_size: int) -> float:
    """Share of the blocks' room that holds nothing: less than one block a request, (block_size - 1) / 2 tokens on
    average where every remainder is as likely. Kwon et al. 2023, section 4.1 (arXiv:2309.06180).

    Raises:
        ValueError: for no request, one without a token, and blocks without room.
    """
    if not lengths or min(lengths) < 1 or block_size < 1:
        raise ValueError(f"block_size={block_size} and each of the lengths must be at least 1; there are {lengths}")
    room = sum(-(-length // block_size) * block_size for length in lengths)
    return 1 - sum(lengths) / room
