"""L(N, D) = E + A / N^alpha + B / D^beta fitted to runs, with an interval.

For given exponents the loss is linear in E, A and B, which least squares finds at once (variable projection, Golub and
Pereyra 1973). So only the two exponents are searched, and no start has to be guessed. Hoffmann et al. 2022 fit all five
at once (their approach 3); `fit_all_at_once` is that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from llm_core.costs.scaling import LossFit
from torch import Tensor

Points = Float[Tensor, " runs"]
HUBER = 1e-3  # in the logarithm of the loss: beyond a tenth of a percent a run pulls with a constant force


class Run(NamedTuple):
    """What training reached.

    Attributes:
        parameters: N.
        tokens: D.
        loss: in nats a token, on text that was not trained on.
    """

    parameters: float
    tokens: float
    loss: float


def columns_of(runs: Sequence[Run]) -> tuple[Points, Points, Points]:
    if len(runs) < 6:
        raise ValueError(f"five numbers are fitted: {len(runs)} runs are too few, take 6 or more")
    N, D, loss = torch.tensor([tuple(run) for run in runs], dtype=torch.float64).T
    if not (N > 0).all() or not (D > 0).all() or not (loss > 0).all() or not torch.isfinite(loss).all():
        raise ValueError("parameters, tokens and losses must be above 0 and finite")
    return N, D, loss


def huber(residuals: Tensor, delta: float = HUBER) -> Tensor:
    """Half the square up to `delta`, a line beyond it."""
    small = residuals.abs().clamp(max=delta)
    return small * (residuals.abs() - small / 2)


def terms(N: Points, D: Points, exponents: Tensor) -> Float[Tensor, "pairs runs 3"]:
    """1, N^-alpha and D^-beta for each pair of exponents; relative to the middle N and D, so that all have one size."""
    n, d = N.log() - N.log().mean(), D.log() - D.log().mean()
    alpha, beta = exponents[:, :1], exponents[:, 1:]
    return torch.stack([torch.ones_like(alpha * n), (-alpha * n).exp(), (-beta * d).exp()], dim=-1)


def solve(powers: Float[Tensor, "pairs runs 3"], loss: Points, weights: Points) -> Float[Tensor, "pairs 3"]:
    """The factors of the three terms with the least weighted squares of relative errors, none below 0."""
    scaled = powers * (weights / loss)[:, None]
    squares = scaled.mT @ scaled + 1e-13 * torch.eye(3, dtype=torch.float64)
    products = scaled.mT @ weights
    found = torch.linalg.solve(squares, products)
    negative = (found < 0).any(dim=1)
    if negative.any():
        found[negative] = without_some(squares[negative], products[negative])
    return found


def without_some(squares: Tensor, products: Tensor) -> Tensor:
    """Non-negative least squares of three columns, where one or two have to be left out."""
    lowest = torch.full((len(squares),), math.inf, dtype=torch.float64)
    chosen = torch.zeros(len(squares), 3, dtype=torch.float64)
    for kept in ([0, 1], [0, 2], [1, 2], [0], [1], [2]):
        part = torch.zeros_like(chosen)
        part[:, kept] = torch.linalg.solve(squares[:, kept][..., kept], products[:, kept])
        miss = -(part * products).sum(dim=1)  # at the solution, without what all have in common
        better = (part >= 0).all(dim=1) & (miss < lowest)
        lowest, chosen = torch.where(better, miss, lowest), torch.where(better[:, None], part, chosen)
    return chosen


def fit(runs: Sequence[Run], low: float = 0.05, high: float = 1.2, rounds: int = 9) -> LossFit:
    """The law of least Huber loss of log L, by variable projection on a grid of exponents that narrows.

    Args:
        runs: six or more, with different N and different D.
        low, high: between which both exponents are searched.
        rounds: of narrowing; each makes the grid of 17 x 17 pairs four times finer.

    Raises:
        ValueError: for too few runs, or numbers that cannot be.
    """
    N, D, loss = columns_of(runs)
    centre, half = torch.full((2,), (low + high) / 2, dtype=torch.float64), (high - low) / 2
    weights = torch.ones_like(loss)
    for _ in range(rounds):
        steps = torch.linspace(-half, half, 17, dtype=torch.float64)
        grid = torch.cartesian_prod(steps, steps) + centre
        grid = grid.clamp(min=low, max=high)
        powers = terms(N, D, grid)
        for _ in range(3):  # weights that turn least squares into Huber's loss
            found = solve(powers, loss, weights)
            misses = (powers @ found[..., None])[..., 0].log() - loss.log()
            best = huber(misses).sum(dim=1).argmin()
            weights = (HUBER / misses[best].abs().clamp(min=HUBER)).sqrt()
        centre, half = grid[best], half / 4
    (E, a, b), (alpha, beta) = found[best].tolist(), centre.tolist()
    middle_n, middle_d = N.log().mean().exp().item(), D.log().mean().exp().item()
    return LossFit(E, a * middle_n**alpha, b * middle_d**beta, alpha, beta)


def fit_all_at_once(runs: Sequence[Run], starts: Sequence[LossFit]) -> LossFit:
    """The same loss minimised over all five numbers by L-BFGS, from each start; the best. Hoffmann et al. 2022, D.2.

    Args:
        runs: six or more.
        starts: where to begin; they used a grid of some hundreds.
    """
    N, D, loss = columns_of(runs)
    best, lowest = starts[0], math.inf
    for start in starts:
        values = [math.log(max(each, 1e-12)) for each in (start.E, start.A, start.B)] + [start.alpha, start.beta]
        theta = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([theta], max_iter=300, line_search_fn="strong_wolfe")

        def objective(theta: Tensor = theta) -> Tensor:
            e, a, b, alpha, beta = theta
            terms = torch.stack([e.expand_as(N), a - alpha * N.log(), b - beta * D.log()])
            return huber(terms.logsumexp(dim=0) - loss.log()).sum()

        def closure(
            optimizer: torch.optim.Optimizer = optimizer, objective: Callable[[], Tensor] = objective
        ) -> Tensor:
            optimizer.zero_grad()
            value = objective()
            value.backward()
            return value

        optimizer.step(closure)
        reached = objective().item()
        if reached < lowest:
            e, a, b, alpha, beta = theta.detach().tolist()
            best, lowest = LossFit(math.exp(e), math.exp(a), math.exp(b), alpha, beta), reached
    return best


def bootstrap(
    runs: Sequence[Run], value: Callable[[LossFit], float], draws: int = 200, seed: int = 0, share: float = 0.9
) -> tuple[float, float]:
    """An interval that holds `share` of the values of fits to runs drawn anew, with replacement.

    It knows the noise of these runs, not whether the law holds outside them. And it is an interval for the law: a new
    run has noise of its own (`prediction_interval`).

    Args:
        value: what is asked of a fit: a predicted loss, an exponent, a best split.
        draws: fits.
        seed: of the draws.
        share: inside the interval.
    """
    return middle([value(law) for law in resampled(runs, draws, torch.Generator().manual_seed(seed))], share)


def resampled(runs: Sequence[Run], draws: int, draw: torch.Generator) -> Iterator[LossFit]:
    """Fits to as many runs, drawn with replacement; draws of fewer than six different runs are left out."""
    while draws:
        chosen = [runs[number] for number in torch.randint(len(runs), (len(runs),), generator=draw).tolist()]
        if len(set(chosen)) >= 6:  # five numbers need more than five runs
            yield fit(chosen, rounds=6)
            draws -= 1


def prediction_interval(
    runs: Sequence[Run], parameters: float, tokens: float, draws: int = 200, seed: int = 0, share: float = 0.9
) -> tuple[float, float]:
    """An interval for the loss of a new run: fits to runs drawn anew, each with the noise of one run upon it.

    The noise is how far a run, drawn by chance, lies from the fit to all of them, relative to it.

    Args:
        parameters: N of the new run.
        tokens: D of the new run.
        draws, seed, share: as for `bootstrap`.
    """
    draw, law = torch.Generator().manual_seed(seed), fit(runs)
    noise = [run.loss / law.loss(run.parameters, run.tokens) for run in runs]
    drawn = torch.randint(len(runs), (draws,), generator=draw).tolist()
    fits = zip(resampled(runs, draws, draw), drawn, strict=True)
    return middle([each.loss(parameters, tokens) * noise[number] for each, number in fits], share)


def middle(values: Sequence[float], share: float) -> tuple[float, float]:
    """The two ends between which the middle `share` of the values lies."""
    ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)
    low, high = torch.tensor(values, dtype=torch.float64).quantile(ends).tolist()
    return low, high
