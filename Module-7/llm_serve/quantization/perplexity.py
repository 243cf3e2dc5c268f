"""What quantisation costs, in loss: the same rows for both models, and the spread of the rows' differences.

Rows differ far more from each other than two models do on one row. The difference is taken for each row first, so that
this spread falls away (a paired comparison).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from llm_core.losses import causal_loss
from torch import Tensor, nn


@torch.no_grad()
def row_losses(model: nn.Module, ids: Int[Tensor, "rows time"], batch: int = 4) -> Float[Tensor, " rows"]:
    """The mean loss of each row, in nats a token, in float64; the model is in whatever mode it was in."""
    found = []
    for part in ids.to(next(model.parameters()).device).split(batch):
        logits = model(part).logits
        for row in range(len(part)):
            total, targets = causal_loss(logits[row : row + 1], part[row : row + 1])
            found.append(total.double() / targets)
    return torch.stack(found)


@dataclass(frozen=True)
class Difference:
    """Of two models on the same rows.

    Attributes:
        nats: mean of loss less reference, a token.
        standard_error: of that mean, from the spread of the rows' differences.
    """

    nats: float
    standard_error: float

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity over that of the reference."""
        return math.exp(self.nats)

    def __str__(self) -> str:
        return f"{self.nats:+.4f} ± {self.standard_error:.4f} nats (perplexity x {self.perplexity_ratio:.4f})"


def paired_difference(losses: Float[Tensor, " rows"], reference: Float[Tensor, " rows"]) -> Difference:
    """The mean of the rows' differences with its standard error.

    Raises:
        ValueError: for fewer than two rows, which have no spread, and for different numbers of them.
    """
    if losses.shape != reference.shape or len(losses) < 2:
        wrong = f"{len(losses)} rows beside {len(reference)}"
        raise ValueError(f"{wrong}; measure both models on the same rows, at least two")
    gaps = (losses - reference).double()
    return Difference(float(gaps.mean()), float(gaps.std() / math.sqrt(len(gaps))))
