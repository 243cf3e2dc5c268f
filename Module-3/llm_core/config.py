"""The sizes of a model, checked once for every place that builds one."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model, under the names of `transformers.LlamaConfig`.

    Args:
        vocab_size: ids, as many as the tokenizer has.
        hidden_size: C.
        intermediate_size: width inside the MLP; 0 takes 8/3 of C, rounded up to a multiple of 32, so that its three
            matrices are about as large as two of 4 C.
        num_hidden_layers: blocks.
        num_attention_heads: H.
        num_key_value_heads: K, each shared by H / K query heads; 0 takes H.
        max_position_embeddings: the longest row.
        rms_norm_eps: inside the root of RMSNorm.
        rope_theta: base of the rotary frequencies.
        attention_dropout: share of the attention weights that training drops.
        initializer_range: standard deviation of the initial weights.
        tie_word_embeddings: whether the head's matrix is the embedding's.

    Raises:
        ValueError: for sizes that cannot be, with what to change.
    """

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 0
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 0
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.intermediate_size == 0:
            object.__setattr__(self, "intermediate_size", 32 * -(-self.hidden_size // 12))
        if self.num_key_value_heads == 0:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number and at least 1")
        for name, least in (("rms_norm_eps", "above 0"), ("rope_theta", "above 0"), ("initializer_range", "0 or more")):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (value == 0 and least == "above 0"):
                raise ValueError(f"{name}={value!r} must be a number and {least}")
        heads = self.num_attention_heads
        if self.hidden_size % heads or self.head_dim % 2:
            wrong = f"hidden_size={self.hidden_size} does not give {heads} heads of an even width"
            raise ValueError(f"{wrong}; make it a multiple of {2 * heads}")
        if heads % self.num_key_value_heads:
            raise ValueError(f"num_key_value_heads={self.num_key_value_heads} must divide num_attention_heads={heads}")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"attention_dropout={self.attention_dropout} must be in [0, 1)")
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(f"tie_word_embeddings={self.tie_word_embeddings!r} must be true or false")

    @property
    def head_dim(self) -> int:
        """D."""
        return self.hidden_size // self.num_attention_heads

    def refuse_longer(self, time: int) -> None:
        """Raise a ValueError for a row of more positions than the model has."""
        if time > self.max_position_embeddings:
            wrong = f"{time} positions, and the model has {self.max_position_embeddings}"
            raise ValueError(f"{wrong}; shorten the text, or train with a larger max_position_embeddings")
