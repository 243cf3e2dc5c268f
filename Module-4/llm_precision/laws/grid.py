"""A grid of small models on bytes of text, each trained to the end of its schedule: what a scaling law is fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from jaxtyping import Int
from llm_core.config import GPTConfig
from llm_core.costs.counts import matmul_parameters
from llm_core.losses import causal_loss
from llm_core.model import GPT
from llm_core.optimizers import parameter_groups, rate_factor
from llm_data.text.corpora import load_corpus
from torch import Tensor

from llm_precision.laws.fit import Run

CONTEXT, ROWS = 64, 8
VOCABULARY = 128  # bytes of ASCII; others become 127
LAYERS = 2
GRID: dict[float, tuple[int, ...]] = {  # widths of each budget of FLOPs, around the one of lowest loss
    3e9: (8, 12, 16, 24, 32), 9e9: (8, 12, 16, 24, 32, 48), 2.7e10: (12, 16, 24, 32, 48),
    8.1e10: (12, 16, 24, 32, 48, 64), 2.43e11: (16, 24, 32, 48, 64),
}  # fmt: skip

Text = Int[Tensor, " bytes"]


def shape(width: int) -> GPTConfig:
    """The model of a width, which alone makes the models of the grid differ: two layers, heads of 8 or 16 channels."""
    return GPTConfig(
        VOCABULARY, width, 8 * round(width / 3), num_hidden_layers=LAYERS, num_attention_heads=max(1, width // 16),
        max_position_embeddings=CONTEXT, initializer_range=math.sqrt(2 / (5 * width)),
    )  # fmt: skip


@lru_cache(maxsize=4)
def text_of(corpus: str, split: str) -> Text:
    """A side of a corpus as bytes in one line, documents parted by a zero."""
    documents: Iterator[str] = load_corpus(corpus).documents(split)  # type: ignore[arg-type]
    joined = "\0".join(documents).encode("ascii", "replace")
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8).clamp(max=VOCABULARY - 1).to(torch.long)


def loss_on(model: GPT, text: Text, rows: int = 256) -> float:
    """Nats a byte over `rows` rows of the context, spread evenly over the text."""
    starts = torch.linspace(0, len(text) - CONTEXT - 1, rows).long()
    ids = torch.stack([text[start : start + CONTEXT] for start in starts])
    with torch.no_grad():
        total, targets = causal_loss(model(ids).logits, ids)
    return (total / targets).item()


def learning_rate(width: int) -> float:
    """The highest rate for a width.

    Of 0.16, 0.32, 0.64, 1.28 and 2.56 over the width, tried at widths 8, 24 and 64 with 300 steps, the second and the
    third were best each time, and equal within 0.005 nats.
    """
    return 0.45 / width


def train(
    width: int, tokens: float, seed: int = 0, corpus: str = "python-functions", rate: float | None = None,
    planned: float | None = None,
) -> Run:  # fmt: skip
    """Train a model of a width on so many bytes, its rate falling to a tenth at the end, and give its run.

    N of the run are the matrices that every token is multiplied by: of the 6 N D FLOPs of a training, those that are
    really made (without attention's T x T products).

    Args:
        width: C.
        tokens: bytes to train on; rounded to whole batches of 8 x 64.
        seed: of the weights and of the order of the text.
        corpus: what to train on, and to validate on.
        rate: the highest learning rate; by default that of the width.
        planned: bytes at whose end the rate would be at its lowest; by default `tokens`. More cuts a run short.
    """
    config, text = shape(width), text_of(corpus, "train")
    steps = max(2, round(tokens / (ROWS * CONTEXT)))
    end = max(steps, round((planned or tokens) / (ROWS * CONTEXT)))
    torch.manual_seed(seed)
    model = GPT(config)
    highest = learning_rate(width) if rate is None else rate
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=highest, betas=(0.9, 0.95), fused=True)
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        starts = torch.randint(len(text) - CONTEXT, (ROWS,), generator=draw)
        ids = text[starts[:, None] + torch.arange(CONTEXT)]
        total, targets = causal_loss(model(ids).logits, ids)
        (total / targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = highest * rate_factor(step, max(1, end // 20), end, 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Run(matmul_parameters(config), steps * ROWS * CONTEXT, loss_on(model, text_of(corpus, "val")))


def tokens_for(width: int, flops: float) -> float:
    """Bytes that a budget of FLOPs buys for a width, attention's products left out: C = 6 N D."""
    return flops / (6 * matmul_parameters(shape(width)))
