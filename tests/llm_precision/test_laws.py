"""Fits that find the law that made the losses, and a parabola's vertex that is off by what the third order says."""

from __future__ import annotations

import math

import pytest
import torch
from llm_core.costs.counts import matmul_parameters
from llm_core.costs.scaling import BESIROGLU, HOFFMANN, LossFit, optimal_split
from llm_precision.laws import grid
from llm_precision.laws.fit import Run, bootstrap, fit, fit_all_at_once, huber, prediction_interval
from llm_precision.laws.isoflop import exponent, lowest, parabola, simulated_bias, vertex_bias

DECADE = [math.log(10) * each / 4 for each in range(-4, 5)]  # nine sizes, a decade to either side
LAW = LossFit(E=1.2, A=30.0, B=90.0, alpha=0.42, beta=0.31)


def runs(law: LossFit, noise: float = 0.0, seed: int = 0) -> list[Run]:
    draw = torch.Generator().manual_seed(seed)
    made = []
    for N in (1e4, 3e4, 1e5, 3e5, 1e6):
        for D in (1e5, 3e5, 1e6, 3e6, 1e7):
            error = noise * torch.randn((), generator=draw).item()
            made.append(Run(N, D, law.loss(N, D) * math.exp(error)))
    return made


def exponents(law: LossFit) -> list[float]:
    return [law.E, law.alpha, law.beta]


@pytest.mark.parametrize("law", [LAW, LossFit(1.7, 400.0, 2000.0, 0.35, 0.37), LossFit(0.5, 10.0, 10.0, 0.2, 0.6)])
def test_without_noise_the_law_is_found(law):
    assert exponents(fit(runs(law))) == pytest.approx(exponents(law), rel=1e-3)


def test_both_ways_find_the_same_law_in_noise():
    given = runs(LAW, noise=0.002)
    ours = fit(given)
    theirs = fit_all_at_once(given, [ours, LossFit(1.0, 50.0, 50.0, 0.3, 0.3), LossFit(2.0, 10.0, 500.0, 0.6, 0.5)])
    assert exponents(ours) == pytest.approx(exponents(theirs), rel=5e-3)
    assert exponents(ours) == pytest.approx(exponents(LAW), rel=0.1)


def test_one_broken_run_does_not_bend_the_law():
    given = runs(LAW, noise=0.0005)
    spoiled = [*given[:7], given[7]._replace(loss=given[7].loss * 1.3), *given[8:]]
    assert exponents(fit(spoiled)) == pytest.approx(exponents(fit(given)), rel=0.03)


def test_the_interval_holds_a_run_that_was_not_fitted():
    held = sum(
        low <= LAW.loss(3e6, 3e7) <= high
        for low, high in (
            bootstrap(runs(LAW, 0.003, seed), lambda law: law.loss(3e6, 3e7), draws=25, seed=seed) for seed in range(6)
        )
    )
    assert held >= 3  # of 6 intervals of 90%; a bootstrap of 25 runs is somewhat narrow
    low, high = bootstrap(runs(LAW, 0.003), lambda law: law.alpha, draws=40)
    assert low < 0.42 < high and high - low < 0.2


def test_hubers_loss():
    found = huber(torch.tensor([0.0, 0.5, -1.0, 3.0]), 1.0)
    assert found.tolist() == [0.0, 0.125, 0.5, 2.5]


def test_too_few_runs_and_impossible_ones_are_refused():
    with pytest.raises(ValueError, match="5 runs are too few, take 6 or more"):
        fit(runs(LAW)[:5])
    with pytest.raises(ValueError, match="above 0 and finite"):
        fit([*runs(LAW), Run(1e4, 1e5, math.nan)])


def test_a_parabola_is_found_and_refused():
    sizes = [10.0, 100.0, 1000.0, 10000.0]
    losses = [2.0 + 0.25 / 2 * (math.log(N) - math.log(300.0)) ** 2 for N in sizes]
    assert parabola(sizes, losses) == pytest.approx((300.0, 2.0, 0.25))
    with pytest.raises(ValueError, match="2 sizes: a parabola needs three"):
        parabola([1.0, 2.0, 2.0], [1.0, 2.0, 2.0])
    with pytest.raises(ValueError, match="on one side of the best one"):
        parabola(sizes, [-each for each in losses])


@pytest.mark.parametrize(("alpha", "beta", "percent"), [(0.3, 0.3, 0.0), (0.34, 0.28, 4.0), (0.46, 0.27, 13.1)])
def test_the_vertex_is_not_the_minimum(alpha, beta, percent):
    """Over nine sizes within a decade to either side: nothing, 4% and 13% too large, and the third order says so."""
    law = LossFit(1.7, 400.0, 400.0, alpha, beta)
    found = simulated_bias(law, 1e21, DECADE)
    assert 100 * math.expm1(found) == pytest.approx(percent, abs=0.35)
    assert vertex_bias(alpha, beta, DECADE) == pytest.approx(found, abs=0.005)
    assert simulated_bias(law, 1e15, DECADE) == pytest.approx(found, rel=1e-6, abs=1e-9)  # at any budget


def test_the_published_laws_split_as_they_say():
    for law in (HOFFMANN, BESIROGLU):
        best = optimal_split(1e21, law).parameters
        around = [law.loss(best * factor, 1e21 / (6 * best * factor)) for factor in (0.9, 1.0, 1.1)]
        assert around[1] < min(around[0], around[2])


def test_the_interval_of_a_new_run_is_wider_than_that_of_the_law():
    """With noise of 1% the law's interval narrows with more runs; a new run's does not fall below the noise."""
    draw = torch.Generator().manual_seed(5)
    runs = [
        Run(N, D, BESIROGLU.loss(N, D) * (1 + 0.01 * torch.randn((), generator=draw).item()))
        for N in (1e6, 4e6, 1.6e7, 6.4e7) for D in (1e7, 1e8, 1e9, 1e10)
    ]  # fmt: skip
    low, high = bootstrap(runs, lambda law: law.loss(3e7, 3e9), draws=60)
    lower, higher = prediction_interval(runs, 3e7, 3e9, draws=60)
    true = BESIROGLU.loss(3e7, 3e9)
    assert lower < low < true < high < higher
    assert higher - lower > 0.02 * true


def test_slopes_and_lowest_runs():
    budgets = [1e9, 1e10, 1e11]
    assert exponent(budgets, [3 * budget**0.4 for budget in budgets]) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="a slope needs two"):
        exponent([1e9, 1e9], [1.0, 2.0])
    runs = {1.0: [Run(1, 1, 3.0), Run(2, 0.5, 2.0)], 2.0: [Run(1, 2, 1.5)]}
    assert {budget: run.parameters for budget, run in lowest(runs).items()} == {1.0: 2, 2.0: 1}


def test_a_run_of_the_grid(monkeypatch):
    """N are the matrices, D whole batches, and a longer training from the same seed reaches a lower loss."""
    text = torch.tensor([65, 66, 67, 68] * 2000)
    monkeypatch.setattr(grid, "text_of", lambda corpus, split: text)
    short, long = grid.train(16, 10 * 512), grid.train(16, 100.4 * 512)
    assert long.tokens == 100 * 512 and long.parameters == matmul_parameters(grid.shape(16))
    assert long.loss < 0.1 < 0.3 < short.loss < 4.9
    assert grid.train(16, 10 * 512) == short != grid.train(16, 10 * 512, seed=1)
    cut = grid.train(16, 30 * 512, planned=3000 * 512)
    assert cut.tokens == 30 * 512 and cut.loss != grid.train(16, 30 * 512).loss
    assert grid.tokens_for(16, 6e9) == pytest.approx(1e9 / short.parameters)
