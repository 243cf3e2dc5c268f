"""Figures that take more lines than what they show, so that the lessons call them in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from course.plots import BLUE, COLORS, ORANGE, SKY

Array = NDArray[np.float64]


def points_and_line(x: Array, y: Array, slope: float, intercept: float) -> None:
    """Points, a line, and the vertical errors between them."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(5, 2.8))
    ax.axline((0, intercept), slope=slope, label=f"y = {slope:g} x + {intercept:g}")
    ax.plot(x, y, "o", color=ORANGE, label="points")
    ax.vlines(x, slope * x + intercept, y, linestyles="dotted", color=COLORS[3], label="errors")
    ax.set(xlabel="x", ylabel="y", xlim=(0, 1.15 * x.max()), ylim=(0, 1.1 * y.max()))
    ax.legend()
    plt.show()


def loss_surface(X: Array, y: Array, paths: Mapping[str, Array], ax: Any, title: str) -> None:
    """Lines of equal loss of a linear model with two weights, and paths of gradient descent over them.

    Args:
        X: (n, 2), the inputs beside a column of ones.
        y: (n,), what is to be predicted.
        paths: a label and the weights of each step, (steps + 1, 2).
        ax: matplotlib axes.
        title: above them.
    """
    best = np.linalg.solve(X.T @ X, X.T @ y)
    places = np.concatenate([*paths.values(), best[None]])
    middle, reach = (places.max(axis=0) + places.min(axis=0)) / 2, 0.6 * np.ptp(places, axis=0).max() + 0.2
    m, b = (np.linspace(centre - reach, centre + reach, 121) for centre in middle)
    weights = np.stack(np.meshgrid(m, b), axis=-1)  # (121, 121, 2)
    loss = ((weights @ X.T - y) ** 2).mean(axis=-1)
    lowest = np.mean((X @ best - y) ** 2)
    ax.contour(m, b, loss - lowest, levels=np.geomspace(0.01, 30, 9), colors="#aaaaaa", linewidths=0.8)
    for (label, path), color in zip(paths.items(), (COLORS[3], BLUE), strict=False):
        ax.plot(path[:, 0], path[:, 1], "o-", color=color, markersize=3.5, linewidth=0.8, label=label)
    ax.plot(*best, "*", color="black", markersize=11, label="lowest point")
    ax.set(xlabel="slope m", ylabel="offset b", title=title, aspect="equal")
    ax.grid(False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=9)


def bends(x: Array, truth: Array, curve: Array, places: Array, straight: Array) -> None:
    """A network's curve with its bends, what it was trained on, and the best straight line."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    ax.plot(x, truth, color="#888888", linestyle="dotted", label="sin x")
    ax.plot(x, straight, color=ORANGE, label="best straight line")
    ax.plot(x, curve, color=BLUE, label="network")
    ax.plot(places, np.interp(places, x, curve), "o", color=BLUE, label="bends")
    ax.set(xlabel="x", ylabel="y")
    ax.legend(ncols=2)
    plt.show()


def loss_of_size(sizes: list[int], losses: Array, straight: float) -> None:
    """One dot a run, the median over the seeds, and the loss of a straight line; `losses` is (sizes, seeds)."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    ax.loglog(sizes, losses, "o", color=SKY, markersize=5)
    ax.loglog(sizes, np.median(losses, axis=1), color=BLUE, label=f"median of {losses.shape[1]} seeds")
    ax.axhline(straight, color=ORANGE, linestyle="dashed", label="best straight line")
    ax.set(xlabel="hidden units", ylabel="mean squared error")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.legend()
    plt.show()


def losses_apart(curves: Mapping[str, Sequence[float]], checkpoint: int) -> None:
    """How far the losses of resumed runs are from those of a run that never stopped.

    Args:
        curves: a label and the difference at each step.
        checkpoint: the step at which the runs were resumed.
    """
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(7, 3))
    for (label, values), color in zip(curves.items(), (BLUE, COLORS[3]), strict=True):
        ax.plot(values, label=label, color=color)
    ax.axvline(checkpoint, color="#888888", linestyle="dotted", label="checkpoint")
    ax.set(xlabel="step", ylabel="difference of the losses, nats")
    ax.legend()
    plt.show()


def run_and_baselines(
    losses: Sequence[float],
    validations: Sequence[tuple[int, float, float]],
    accuracies: Mapping[str, float],
    chance: float,
) -> None:
    """A run's training and validation loss on the left, its accuracy beside cheaper methods' on the right.

    Args:
        losses: training loss of each batch.
        validations: (batch, loss, accuracy).
        accuracies: by method.
        chance: loss of equal shares.
    """
    import matplotlib.pyplot as plt

    _, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4), width_ratios=(3, 2))
    left.plot(losses, color=SKY, linewidth=0.8, label="training, each batch")
    left.plot(*zip(*[(batch, loss) for batch, loss, _ in validations], strict=True), "o-", label="validation")
    left.axhline(chance, color="#888888", linestyle="dotted", label="ln 3")
    left.set(xlabel="batch", ylabel="loss, nats")
    left.legend(fontsize=9, loc="upper right", bbox_to_anchor=(1, 0.88))  # below the line of ln 3
    bars = right.bar(list(accuracies), list(accuracies.values()), color=[COLORS[6], ORANGE, BLUE])
    right.bar_label(bars, fmt="{:.1%}", padding=2, fontsize=9)
    right.set(ylabel="validation accuracy", ylim=(0, 1))
    right.tick_params(axis="x", labelsize=9)
    plt.show()


def bars_of(values: Mapping[str, float], label: str, formatted: str = "{:,.0f}", top: int = 1) -> None:
    """Horizontal bars with their numbers, the first `top` of them in the colour of what is to be seen first."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(7, 0.6 + 0.28 * len(values)))
    ax.barh(list(values), list(values.values()), color=[COLORS[3]] * top + [BLUE] * (len(values) - top))
    ax.bar_label(ax.containers[0], fmt=formatted, padding=3)  # type: ignore[arg-type]
    ax.invert_yaxis()
    ax.set(xlabel=label, xlim=(0, 1.12 * max(values.values())))
    plt.show()


def losses_of_rates(rates: Sequence[float], losses: Mapping[str, Array], chance: float) -> None:
    """Validation loss over the learning rate: a dot a run, and medians; arrays are (rates, seeds)."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(7, 3.2))
    for (label, values), color, shift in zip(losses.items(), (COLORS[3], BLUE), (0.96, 1.04), strict=True):
        places = np.asarray(rates) * shift
        ax.semilogx(places, values, "o", color=color, markersize=4, alpha=0.5)
        ax.semilogx(places, np.median(values, axis=1), color=color, label=f"{label}, median")
    ax.axhline(chance, color="#888888", linestyle="dotted", label="ln 3")
    ax.set(xlabel="peak learning rate", ylabel="validation loss, nats", ylim=(None, 1.3))
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.minorticks_off()
    ax.legend()
    plt.show()


def early_stop(ours: Sequence[float], theirs: Sequence[float], interval: int) -> None:
    """Validation losses of two loops until both stop; the lowest one is marked."""
    import matplotlib.pyplot as plt

    steps = interval * np.arange(1, len(ours) + 1)
    _, ax = plt.subplots(figsize=(6.5, 3))
    ax.plot(steps, ours, "o", markersize=11, fillstyle="none", color=BLUE, label="the loop by hand")
    ax.plot(interval * np.arange(1, len(theirs) + 1), theirs, "x", color=COLORS[3], label="Lightning")
    ax.axvline(steps[int(np.argmin(ours))], color="#888888", linestyle="dotted", label="lowest")
    ax.axvline(steps[-1], color="black", linestyle="dashed", label="stop")
    ax.set(xlabel="step", ylabel="validation loss, nats", xlim=(0, 1.05 * steps[-1]))
    ax.legend(ncols=4, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1))
    plt.show()


def drift(weights: Array, losses: Array) -> None:
    """How far two runs are apart over the steps, a line a seed; arrays are (seeds, steps), zeros leave gaps."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(7, 3.6))
    for values, color, label in ((weights, COLORS[3], "farthest weight"), (losses, BLUE, "loss, nats")):
        for seed, line in enumerate(np.where(values > 0, values, np.nan)):
            ax.semilogy(np.arange(1, len(line) + 1), line, ".-", markersize=3, linewidth=1, color=color,
                        label=label if seed == 0 else None)  # fmt: skip
    ax.axhline(2**-23, color="#888888", linestyle="dotted", label="one rounding, $2^{-23}$")
    ax.set(xlabel="step", ylabel="difference of the two runs")
    ax.legend(fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    plt.show()


def overhead(hand: Array, shares: Array, c: float) -> None:
    """Measured shares over the length of a step by hand, in milliseconds, and c / (t + c)."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(6.5, 3))
    t = np.geomspace(0.8 * hand.min(), 1.25 * hand.max(), 100)
    ax.semilogx(t, c / (t + c), color=ORANGE, label=f"c / (t + c) with c = {c:.2f} ms")
    ax.semilogx(hand, shares, "o", color=BLUE, label="measured")
    ax.set(xlabel="step by hand, ms", ylabel="Lightning's share", ylim=(0, 1))
    ax.legend()
    plt.show()
