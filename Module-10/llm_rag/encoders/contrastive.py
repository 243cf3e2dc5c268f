"""InfoNCE: each question is to find its own answer among all of the batch. van den Oord et al. 2018, equation 4.

With cosines s(i, j) of question i and answer j and temperature t the loss of question i is
-log(exp(s(i, i) / t) / sum over j of exp(s(i, j) / t)): cross-entropy over the batch, whose other answers are the wrong
ones.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def info_nce(
    questions: Float[Tensor, "batch dim"],
    answers: Float[Tensor, "batch dim"],
    temperature: float = 0.05,
    symmetric: bool = False,
) -> Float[Tensor, ""]:
    """The mean over a batch of pairs, in nats; log(batch) where nothing is known.

    Args:
        questions, answers: pairs in the same order; only their directions count.
        temperature: that cosines are divided by; sentence-transformers calls 1 / temperature `scale`.
        symmetric: the mean of both directions, as each answer also is to find its question. Radford et al. 2021.

    Raises:
        ValueError: for a temperature that is not above 0, or a batch of one pair, which teaches nothing.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be above 0")
    if len(questions) < 2:
        raise ValueError(f"a batch of {len(questions)}: its other pairs are the wrong answers; give at least 2")
    cosines = F.normalize(questions.float(), dim=-1) @ F.normalize(answers.float(), dim=-1).T
    own = torch.arange(len(questions), device=questions.device)
    loss = F.cross_entropy(cosines / temperature, own)
    if symmetric:
        loss = (loss + F.cross_entropy(cosines.T / temperature, own)) / 2
    return loss
