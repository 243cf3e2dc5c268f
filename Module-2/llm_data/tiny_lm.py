"""A small language model to compare tokenizers by: the same blocks and the same work for any vocabulary.

It is the measuring instrument of lesson 2. The models that are worth training are in `llm_core`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from annotated_transformer import FeedForward, MultiHeadAttention, causal_mask
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from llm_data.tokenizers.fast import encode_documents

CONTEXT, BATCH = 64, 8


class Block(nn.Module):
    """Attention and feed-forward, each as `x + sublayer(norm(x))`, as in Module 1."""

    def __init__(self, d_model: int, num_heads: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.self_attn = MultiHeadAttention(d_model, num_heads)
        self.feed_forward = FeedForward(d_model, 4 * d_model)

    def forward(
        self, x: Float[Tensor, "batch time channels"], mask: Bool[Tensor, "time time"]
    ) -> Float[Tensor, "batch time channels"]:
        """The shape stays."""
        h = self.norm1(x)
        x = x + self.self_attn(h, h, h, mask)
        return x + self.feed_forward(self.norm2(x))


class TinyLM(nn.Module):
    """Pre-norm blocks under a causal mask between learned embeddings, which are the output layer too."""

    mask: Tensor

    def __init__(self, vocab_size: int, d_model: int = 64, num_layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(CONTEXT, d_model)
        for table in (self.embed, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(d_model) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.register_buffer("mask", causal_mask(CONTEXT))

    def forward(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        """Logits of the token that follows each position."""
        time = ids.shape[1]
        x = self.embed(ids) + self.positions.weight[:time]
        for block in self.blocks:
            x = block(x, self.mask[:time, :time])
        return self.norm(x) @ self.embed.weight.T


def train_tiny_lm(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], flops: float, seed: int = 0, learning_rate: float = 6e-3
) -> TinyLM:
    """A model trained for about so many FLOPs, at 6 a parameter and token: a larger vocabulary gets fewer steps.

    Attention's own `12 L T d` a token are left out. Documents follow one another, each closed by the end-of-text id,
    and the stream is cut into rows of `CONTEXT`.
    """
    torch.manual_seed(seed)
    model = TinyLM(len(tokenizer))
    stream = torch.tensor(_stream(tokenizer, texts))
    rows = (len(stream) - 1) // CONTEXT
    inputs = stream[: rows * CONTEXT].view(rows, CONTEXT)
    targets = stream[1 : rows * CONTEXT + 1].view(rows, CONTEXT)
    order = torch.randperm(rows)
    steps = int(flops / (6 * sum(p.numel() for p in model.parameters()) * BATCH * CONTEXT))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 20) * (1 - step / steps)
        chosen = order[torch.arange(step * BATCH, (step + 1) * BATCH) % rows]
        loss = F.cross_entropy(model(inputs[chosen]).flatten(0, 1), targets[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def total_nats(model: TinyLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> tuple[float, int]:
    """What the texts cost the model in nats, ends of documents included, and how many tokens that were.

    The first token is predicted from an end of text, and the stream is read in windows of `CONTEXT`.
    """
    targets = torch.tensor(_stream(tokenizer, texts))
    inputs = torch.cat([targets.new_tensor([tokenizer.eos_token_id]), targets[:-1]])
    nats = 0.0
    for x, y in zip(inputs.split(64 * CONTEXT), targets.split(64 * CONTEXT), strict=True):
        whole = len(x) // CONTEXT * CONTEXT
        for part, wanted in ((x[:whole].view(-1, CONTEXT), y[:whole]), (x[None, whole:], y[whole:])):
            if part.numel():
                nats += F.cross_entropy(model(part).flatten(0, 1), wanted, reduction="sum").item()
    return nats, len(targets)


@torch.no_grad()
def next_token_bits(model: TinyLM, ids: Sequence[int]) -> Float[Tensor, " vocab"]:
    """What each token would cost as the next one, in bits."""
    logits = model(torch.tensor([ids[-CONTEXT:]]))[0, -1]
    return -F.log_softmax(logits, dim=0) / math.log(2)


def _stream(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[int]:
    return [i for ids in encode_documents(tokenizer, texts) for i in [*ids, tokenizer.eos_token_id]]
