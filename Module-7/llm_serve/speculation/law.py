"""The probabilities that a token is drawn with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from llm_core.generate import Sampling, adjust
from torch import Tensor


def law(logits: Float[Tensor, " vocab"], tokens: Sequence[int], sampling: Sampling) -> Float[Tensor, " vocab"]:
    """The distribution of the next token after `tokens`: a single 1 where the likeliest is taken."""
    row = logits.float().cpu()[None].clone()
    row[:, list(sampling.suppress_tokens)] = -torch.inf
    row = adjust(row, torch.tensor([list(tokens)]), sampling)[0]
    if sampling.temperature == 0:
        return torch.zeros_like(row).index_fill_(0, row.argmax(), 1.0)
    return row.softmax(dim=-1)
