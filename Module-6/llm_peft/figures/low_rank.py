"""Drawings and plots of the lesson on LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.GREEN, "s"), (plots.RED, "D"), (plots.ORANGE, "^"))


def adapter() -> plots.Drawing:
    """A frozen layer and the way beside it: A compresses, B expands."""
    draw = plots.Drawing(5.5, 2.4, "a linear layer with an adapter; dashed: the gradients of what is trained")
    draw.box("x", 0.0, 0.55, text="x", shape="inside", width=0.75)
    draw.box("W", 2.1, -0.1, text="W, frozen", shape="outside, inside", look="gone", width=1.7, height=0.7)
    draw.box("A", 1.2, 1.4, text="A compresses", shape="r, inside", look="weight", width=1.05)
    draw.box("B", 2.95, 1.4, text="B expands", shape="outside, r", look="weight", width=1.0)
    draw.box("s", 4.1, 1.4, text="· alpha / r", look="step", width=0.75, height=0.5)
    draw.box("y", 4.5, 0.25, text="sum", shape="outside", width=0.75)
    draw.arrow("x", "W").arrow("x", "A").arrow("A", "B", "r").arrow("B", "s").arrow("s", "y").arrow("W", "y")
    draw.arrow("y", "s", bend=0.3, dashed=True).arrow("s", "B", bend=-0.55, dashed=True)
    draw.arrow("B", "A", bend=-0.55, dashed=True)
    return draw


def bank() -> plots.Drawing:
    """Rows of a batch that choose their adapters, and the weight that they share."""
    draw = plots.Drawing(5.4, 2.9, "one batch, two adapters, one frozen weight")
    chosen = ("+ B A x\nof 'prose'", "+ 0\nno adapter", "+ B A x\nof 'code'")
    for row, text in enumerate(chosen):
        place = 0.1 + 0.85 * row
        draw.box(f"x {row}", 0.0, place, text=f"row {row}", shape="time, inside", width=0.9)
        draw.box(f"W {row}", 1.4, place, text="W x", look="gone", width=0.7)
        draw.box(f"BA {row}", 2.85, place, text=text, look="gone" if "0" in text else "weight", width=0.85)
        draw.box(f"y {row}", 4.35, place, text=f"row {row}", shape="time, outside", width=0.95)
        draw.chain(f"x {row}", f"W {row}", f"BA {row}", f"y {row}")
    draw.group([f"W {row}" for row in range(3)], "held once")
    draw.group([f"BA {row}" for row in range(3)], "taken by row")
    return draw


def cut_change(ranks: Sequence[int], squares: Mapping[str, Sequence[float]], gained: Sequence[float]) -> Any:
    """What is left of matrices and of what was learned when all but the first singular values are dropped.

    Args:
        ranks: that are kept.
        squares: by the matrix's name, the share of the sum of squares that is kept, a number a rank.
        gained: the share of the gain that a model with the cut change has.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), sharey=True)
    for (name, values), (color, marker) in zip(squares.items(), LOOKS, strict=False):
        left.plot(ranks, [100 * each for each in values], marker=marker, color=color, label=name, markersize=4)
    right.plot(ranks, [100 * each for each in gained], marker="D", color=plots.RED, markersize=4)
    for ax, title in ((left, "kept of the matrix"), (right, "kept of what was learned")):
        ax.set(xscale="log", xlabel="rank that is kept", title=title, ylim=(0, 105))
        ax.set_xticks(ranks, [str(rank) for rank in ranks], fontsize=9)
        ax.minorticks_off()
    left.set_ylabel("%")
    left.legend(fontsize=9)
    return fig


def best_rates(curves: Mapping[str, tuple[Sequence[float], np.ndarray, float]]) -> Any:
    """Loss by learning rate, and the same by how far the first step moves a weight.

    Args:
        curves: by name: the rates; bits per byte, (seeds, rates); the first step's rms change for a rate of 1.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 3.5), sharey=True)
    for (name, (rates, values, size)), (color, marker) in zip(curves.items(), LOOKS, strict=False):
        middle = values.mean(axis=0)
        for ax, places in ((axes[0], np.array(rates)), (axes[1], size * np.array(rates))):
            ax.plot(places, middle, color=color, marker=marker, markersize=5, label=name)
            ax.fill_between(places, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)
    axes[0].set(xscale="log", xlabel="learning rate", ylabel="bits per byte after the run")
    axes[1].set(xscale="log", xlabel="rms change of W by the first step")
    fig.legend(*axes[0].get_legend_handles_labels(), fontsize=9, ncols=3, loc="outside lower center", frameon=False)
    return fig


def by_rank(ranks: Sequence[int], curves: Mapping[str, np.ndarray], line: tuple[str, float]) -> Any:
    """Bits per byte by rank.

    Args:
        ranks: of the adapters.
        curves: by name, (seeds, ranks).
        line: a name and the bits per byte of what needs no rank.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3))
    for (name, values), (color, marker) in zip(curves.items(), LOOKS, strict=False):
        ax.plot(ranks, values.mean(axis=0), color=color, marker=marker, label=name)
        ax.fill_between(ranks, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)
    ax.axhline(line[1], color="black", linestyle="--", linewidth=1.2, label=line[0])
    ax.set(xscale="log", xlabel="rank r", ylabel="bits per byte after the run")
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return fig


def merge_errors(
    sizes: Sequence[float], measured: Mapping[str, Sequence[float]], predicted: Sequence[float], real: float
) -> Any:
    """What rounding after a merge takes of an update, by the update's size.

    Args:
        sizes: rms of the update over that of the weight.
        measured: by format, rms of the error over that of the update.
        predicted: for bfloat16, from the distance of its numbers.
        real: the size that the trained update has.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, values), (color, marker) in zip(measured.items(), LOOKS, strict=False):
        ax.plot(sizes, [100 * each for each in values], marker=marker, color=color, linestyle="none", label=name)
    ax.plot(sizes, [100 * each for each in predicted], color=plots.BLACK, linewidth=1.2, label="bfloat16, equation 6")
    ax.axvline(real, color="#666666", linestyle="--", linewidth=1.2)
    ax.text(real, 0.13, " the trained update", fontsize=9, color="#444444", va="bottom")
    ax.axhline(100, color="#999999", linewidth=1)
    ax.set(xscale="log", yscale="log", ylim=(0.1, 1000))
    ax.set(xlabel="size of the update, relative to the weight", ylabel="lost of the update, %")
    ax.legend(fontsize=9, loc="lower left")
    return fig
