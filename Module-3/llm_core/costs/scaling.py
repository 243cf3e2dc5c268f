"""Scaling laws: the loss from parameters and tokens, and how to split a budget of FLOPs between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class LossFit:
    """L(N, D) = E + A / N^alpha + B / D^beta: the loss, in nats a token, of N parameters after D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """L(N, D)."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta


# As printed, to two or four digits. Hoffmann et al. 2022, section 3.3 and appendix D.3.
HOFFMANN = LossFit(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


# The same form, fitted again to the points of their figure 4. Besiroglu et al. 2024 (arXiv:2404.10102).
BESIROGLU = LossFit(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


class Split(NamedTuple):
    """A budget, split into parameters and tokens."""

    parameters: float
    tokens: float


def optimal_split(compute: float, fit: LossFit) -> Split:
    """The N and D of lowest loss among those with 6 N D = `compute` FLOPs. Hoffmann et al. 2022, section 3.3.

    Where the loss is lowest, alpha A / N^alpha = beta B / D^beta.

    Raises:
        ValueError: for a budget that is not above 0.
    """
    if not compute > 0:
        raise ValueError(f"compute={compute} FLOPs must be above 0")
    G = (fit.alpha * fit.A / (fit.beta * fit.B)) ** (1 / (fit.alpha + fit.beta))
    product = compute / 6
    parameters = G * product ** (fit.beta / (fit.alpha + fit.beta))
    return Split(parameters, product / parameters)
