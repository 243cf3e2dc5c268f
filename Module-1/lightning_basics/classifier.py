"""The pre-norm transformer block, and a classifier of lines of text made of a few of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from annotated_transformer import FeedForward, MultiHeadAttention, PositionalEncoding, padding_mask
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_basics.data import CLASSES, PAD

Hidden = Float[Tensor, "batch time d_model"]


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of a `LineClassifier`.

    Raises:
        ValueError: for sizes that cannot be built, with the value and the fix.
    """

    vocab_size: int = 4096
    context: int = 24
    d_model: int = 64
    num_heads: int = 4
    num_layers: int = 2
    dropout: float = 0.1
    num_classes: int = len(CLASSES)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "d_model", "num_heads", "num_layers", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.d_model % 2 or self.d_model % self.num_heads:
            raise ValueError(
                f"d_model={self.d_model}: must be even and a multiple of num_heads={self.num_heads}; "
                f"try {math.lcm(2, self.num_heads) * max(1, self.d_model // math.lcm(2, self.num_heads))}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be in [0, 1)")


class PreNormBlock(nn.Module):
    """Attention and feed-forward, each as `x + dropout(sublayer(norm(x)))`; week 1's block is `norm(x + ...)`.

    Mirrors `nn.TransformerEncoderLayer(norm_first=True)` with `dim_feedforward = 4 * d_model`, without its dropout
    inside attention and feed-forward. Source: Xiong et al. 2020 (arXiv:2002.04745), figure 1b.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = MultiHeadAttention(d_model, num_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, 4 * d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Hidden, mask: Bool[Tensor, "batch 1 1 time"]) -> Hidden:
        normed = self.norm1(x)
        x = x + self.dropout(self.self_attn(normed, normed, normed, mask))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class LineClassifier(nn.Module):
    """Word ids in, one logit per class out: embedding, positions, blocks, mean over the real words, linear head."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.positions = PositionalEncoding(config.context, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PreNormBlock(config.d_model, config.num_heads, config.dropout) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.num_classes)

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch num_classes"]:
        mask = padding_mask(tokens, PAD)  # (batch, 1, 1, time)
        x = self.embedding(tokens) * math.sqrt(self.config.d_model)  # (batch, time, d_model)
        x = self.dropout(self.positions(x))
        for block in self.blocks:
            x = block(x, mask)
        real = (tokens != PAD).unsqueeze(-1)  # (batch, time, 1)
        mean = (self.norm(x) * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)  # (batch, d_model)
        return self.head(mean)
