"""What a picture costs: tokens, FLOPs of the tower, FLOPs and memory of the language model.

Letters: H pixels of a side, p of a patch's, N tokens, C the tower's width, F inside its MLP, L blocks.
"""

from __future__ import annotations

from llm_core.config import GPTConfig
from llm_core.costs.counts import matmul_parameters
from llm_serve.cache.sizes import kv_bytes_per_token

from llm_vision.config import VisionConfig


def image_tokens(size: int, patch_size: int) -> int:
    """(H / p) squared. Twice the side, or half the patch, is four times the tokens.

    Raises:
        ValueError: when the patches do not divide the picture, with sizes that would.
    """
    return VisionConfig(image_size=size, patch_size=patch_size).num_patches


def vision_parameters(config: VisionConfig) -> int:
    """All weights of a `ViT`: patches, positions, blocks and norms."""
    c, f = config.hidden_size, config.intermediate_size
    tokens = config.num_patches + int(config.class_token)
    patches = config.patch_values * c + c * int(config.patch_bias)
    block = 4 * c * c + c + 3 * c * int(config.qkv_bias) + 2 * c * f + f + c + 4 * c
    return patches + (tokens + int(config.class_token)) * c + config.num_hidden_layers * block + 2 * c * (
        1 + int(config.pre_layernorm)
    )  # fmt: skip


def vision_flops(config: VisionConfig, size: int | None = None) -> int:
    """Of the tower's matrix products for one picture, forward: 2 P p^2 channels C + L (2 N (4 C^2 + 2 C F) + 4 N^2 C).

    Args:
        config: sizes.
        size: of the picture's side; None for the one that the positions were learned for.
    """
    c, f = config.hidden_size, config.intermediate_size
    patches = image_tokens(size or config.image_size, config.patch_size)
    n = patches + int(config.class_token)
    block = 2 * n * (4 * c * c + 2 * c * f) + 4 * n * n * c
    return 2 * patches * config.patch_values * c + config.num_hidden_layers * block


def projector_flops(vision_size: int, text_size: int, tokens: int) -> int:
    """Of the two products of a `Projector`: 2 N (vision x text + text x text)."""
    return 2 * tokens * (vision_size * text_size + text_size * text_size)


def prefill_flops(config: GPTConfig, tokens: int, before: int = 0) -> int:
    """Of the language model for `tokens` tokens of a prompt behind `before` others, forward, without the head, which
    is applied to the last token only: 2 M a token, and 4 L C for each pair of a token with one it may look at.

    Full squares are counted within the new tokens, as `llm_core.costs.counts` has it.
    """
    body = matmul_parameters(config) - config.vocab_size * config.hidden_size
    pairs = tokens * (before + tokens)
    return 2 * body * tokens + 4 * config.num_hidden_layers * config.hidden_size * pairs


def image_kv_bytes(config: GPTConfig, tokens: int, bytes_per_number: float = 2) -> float:
    """What a picture keeps in the language model's cache for as long as it is talked about."""
    return tokens * kv_bytes_per_token(config, bytes_per_number)
