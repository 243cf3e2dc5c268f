"""IsoFLOP curves: runs of one budget and different sizes, the parabola through them, and how its vertex is off.

At a fixed budget C = 6 N D the loss over x = ln N is P e^(-a u) + Q e^(b u) with u = x - x0: not a parabola, and not
symmetric where the exponents a and b differ. Hoffmann et al. 2022, approach 2, takes the vertex of a fitted parabola.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from llm_core.costs.scaling import LossFit, optimal_split

from llm_precision.laws.fit import Run


class Parabola(NamedTuple):
    """loss = lowest + curvature / 2 (ln N - ln vertex)²."""

    vertex: float
    lowest: float
    curvature: float


def parabola(parameters: Sequence[float], losses: Sequence[float]) -> Parabola:
    """The parabola of least squares through losses over ln N.

    Raises:
        ValueError: for fewer than three sizes, or a parabola that opens downwards: it has no lowest point.
    """
    if len(set(parameters)) < 3:
        raise ValueError(f"{len(set(parameters))} sizes: a parabola needs three")
    x = torch.tensor(parameters, dtype=torch.float64).log()
    middle = x.mean()
    columns = torch.stack([torch.ones_like(x), x - middle, (x - middle) ** 2], dim=1)
    wanted = torch.tensor(losses, dtype=torch.float64)
    c0, c1, c2 = torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0].tolist()
    if c2 <= 0:
        raise ValueError("the losses bend downwards over ln N: the sizes lie on one side of the best one")
    shift = -c1 / (2 * c2)
    return Parabola(math.exp(middle.item() + shift), c0 - c1**2 / (4 * c2), 2 * c2)


def vertex_bias(alpha: float, beta: float, offsets: Sequence[float]) -> float:
    """ln(vertex / best N) to third order, for sizes at `offsets` of ln N around the best one, spread evenly about 0.

    With K = alpha P = beta Q the derivatives at the best size are K (alpha + beta) and K (beta² - alpha²). A cubic term
    c u³ looks to a straight line like c <u⁴> / <u²> u. So the vertex moves by (alpha - beta) / 6 <u⁴> / <u²>: to larger
    models where alpha is larger, and not at all where the exponents are equal.
    """
    fourth, second = (sum(u**power for u in offsets) / len(offsets) for power in (4, 2))
    return (alpha - beta) / 6 * fourth / second


def simulated_bias(law: LossFit, compute: float, offsets: Sequence[float]) -> float:
    """ln(vertex / best N) of the parabola through the law's own losses, without any noise."""
    best = optimal_split(compute, law).parameters
    sizes = [best * math.exp(u) for u in offsets]
    found = parabola(sizes, [law.loss(N, compute / (6 * N)) for N in sizes])
    return math.log(found.vertex / best)


def exponent(compute: Sequence[float], sizes: Sequence[float]) -> float:
    """The slope of ln size over ln compute: a in best N ~ C^a. Hoffmann et al. 2022, approaches 1 and 2.

    Raises:
        ValueError: for fewer than two budgets.
    """
    if len(set(compute)) < 2:
        raise ValueError(f"{len(set(compute))} budgets: a slope needs two")
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (compute, sizes))
    x = x - x.mean()
    return ((x * y).sum() / (x * x).sum()).item()


def lowest(runs: Mapping[float, Sequence[Run]]) -> dict[float, Run]:
    """The run of lowest loss of each budget. Hoffmann et al. 2022, approach 1, with whole runs alone."""
    return {budget: min(each, key=lambda run: run.loss) for budget, each in runs.items()}
