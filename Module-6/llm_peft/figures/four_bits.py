"""Drawings and plots of the lesson on four bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course import plots

LOOKS = ((plots.BLACK, "o"), (plots.BLUE, "s"), (plots.ORANGE, "^"), (plots.GREEN, "D"))


def four_bit_layer() -> plots.Drawing:
    """A frozen weight of four bits with an adapter beside it: what is held, what is there for a moment."""
    draw = plots.Drawing(5.6, 2.7, "a linear layer of QLoRA; dashed lines are the way of the gradients")
    draw.box("x", 0.0, 0.9, text="x", shape="n, inside", width=0.75)
    draw.box("W", 1.5, -0.1, text="W in NF4, frozen\n4.127 bits a weight", look="weight", width=1.25)
    draw.box("out", 3.15, -0.1, text="W written out", shape="outside, inside", look="gone", width=1.15)
    draw.box("product", 3.15, 0.9, text="product", look="step", width=0.75, height=0.5)
    draw.box("A", 1.5, 1.85, text="A", shape="r, inside", look="weight", width=0.8)
    draw.box("B", 3.15, 1.85, text="B · alpha / r", shape="outside, r", look="weight", width=0.8)
    draw.box("y", 4.65, 0.9, text="sum", shape="n, outside", width=0.8)
    draw.arrow("W", "out").arrow("out", "product")
    draw.arrow("x", "product").arrow("x", "A").arrow("A", "B").arrow("B", "y")
    draw.arrow("product", "y")
    draw.arrow("y", "product", bend=0.35, dashed=True).arrow("product", "x", bend=0.2, dashed=True)
    draw.arrow("y", "B", bend=-0.3, dashed=True).arrow("A", "x", bend=-0.3, dashed=True).arrow(
        "B", "A", bend=-0.35, dashed=True
    )
    return draw


def layout() -> plots.Drawing:
    """Where the bits of 16,384 weights are, with double quantisation."""
    draw = plots.Drawing(5.4, 2.9, "256 blocks of 64 weights")
    draw.box("w", 0.15, -0.1, text="256 blocks", shape="64 weights each", width=1.05)
    draw.box("n", 2.0, -0.1, text="indices 0 to 15", shape="two in a byte", look="step", width=1.1)
    draw.box("bytes", 4.15, -0.1, text="8,192 bytes", shape="4 bits a weight", look="weight", width=1.2)
    draw.box("s", 0.15, 1.0, text="256 scales", shape="largest of a block", width=1.05)
    draw.box("m", 2.0, 1.0, text="less their mean", shape="over all blocks", look="step", width=1.1)
    draw.box("q", 4.15, 1.0, text="256 bytes", shape="8 / 64 of a bit", look="weight", width=1.2)
    draw.box("s2", 2.0, 2.05, text="1 scale of scales", shape="float32", look="step", width=1.1)
    draw.box("f", 4.15, 2.05, text="4 bytes", shape="32 / 16,384 of a bit", look="weight", width=1.2)
    draw.arrow("w", "n").arrow("n", "bytes").arrow("w", "s").arrow("s", "m").arrow("m", "q").arrow("m", "s2")
    draw.arrow("s2", "f")
    return draw


def pages() -> plots.Drawing:
    """A paged optimiser at two moments of a step: where its states are."""
    draw = plots.Drawing(5.5, 2.7, "paged states: the GPU's memory above, the host's below")
    for left, moment, second, above, below in (
        (0.1, "backward pass", "activations", "data", "loss"), (3.1, "optimiser's step", "states", "loss", "gone")
    ):  # fmt: skip
        draw.note(left + 0.6, -0.35, moment)
        draw.box(f"weights {left}", left, 0.2, text="weights", look="weight", width=0.8)
        draw.box(f"above {left}", left + 1.2, 0.2, text=second, look=above, width=1.1)
        text = "states" if below == "loss" else "free"
        draw.box(f"below {left}", left + 1.2, 1.75, text=text, look=below, width=1.1)
        draw.group([f"weights {left}", f"above {left}"])
    draw.arrow("above 0.1", "below 0.1", "pages go when\nroom runs out", above=False)
    draw.arrow("below 3.1", "above 3.1", "pages come when\nthey are touched", above=True)
    return draw


def values_under_the_bell(tables: Mapping[str, Tensor], size: int = 64) -> Any:
    """The values of each format below the histogram of normal weights that were divided by their block's largest.

    Args:
        tables: values from -1 to 1 by the format's name.
        size: of a block.
    """
    import matplotlib.pyplot as plt

    fig, (above, below) = plt.subplots(
        2, 1, figsize=(7, 2.4 + 0.35 * len(tables)), sharex=True, height_ratios=[2.2, 0.4 * len(tables)]
    )
    blocks = torch.randn(20_000, size, generator=torch.Generator().manual_seed(0))
    shares = (blocks / blocks.abs().amax(dim=1, keepdim=True)).flatten()
    above.hist(shares.numpy(), bins=160, color=plots.SKY, density=True)
    above.set(ylabel="density", ylim=(0, 1.3))
    above.annotate("each block's largest", xy=(0.99, 0.75), xytext=(0.55, 1.1), fontsize=9,
                   arrowprops={"arrowstyle": "-|>", "color": "#444444"})  # fmt: skip
    for row, (table, color) in enumerate(zip(tables.values(), (plots.BLACK, plots.GREEN, plots.BLUE), strict=False)):
        below.vlines(table.numpy(), row - 0.3, row + 0.3, color=color, linewidth=2)
    below.set_yticks(range(len(tables)), list(tables))
    below.set(ylim=(len(tables) - 0.5, -0.5), xlabel="weight over the largest of its block")
    below.grid(axis="y", visible=False)
    return fig


def shares_of_values(counted: Sequence[float]) -> Any:
    """How often each of sixteen values is taken, in percent; the line is the share that all would have alike."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.6))
    ax.bar(range(len(counted)), [100 * share for share in counted], color=plots.BLUE, width=0.75)
    ax.axhline(100 / len(counted), color=plots.BLACK, linestyle="--", label="all alike")
    ax.set(xlabel="index of the value, from -1 to 1", ylabel="% of the weights", xticks=range(len(counted)))
    ax.grid(axis="x", visible=False)
    ax.legend(fontsize=9)
    return fig


def errors_by_size(
    sizes: Sequence[int], predicted: Mapping[str, Sequence[float]], measured: Mapping[str, Sequence[float]]
) -> Any:
    """Mean error over the block's size: lines from the integral, points from weights.

    Args:
        sizes: of blocks.
        predicted, measured: by the format's name, one a size, in standard deviations of the weights.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.1))
    for (name, values), (color, marker) in zip(predicted.items(), LOOKS, strict=False):
        ax.plot(sizes, [100 * value for value in values], color=color, label=f"{name}, predicted")
        points = [100 * value for value in measured[name]]
        ax.plot(sizes, points, marker, color=color, markersize=6, label="counted")
    ax.set(xscale="log", xlabel="weights in a block", ylabel="mean error, % of the\nstandard deviation")
    ax.set_xticks(list(sizes), [str(size) for size in sizes])
    ax.minorticks_off()
    ax.legend(fontsize=9, ncols=2)
    return fig


def fine_tuning(curves: Mapping[str, Mapping[int, Sequence[float]]], base: str) -> Any:
    """Bits per byte over the steps, and what each way costs beside `base` at the end, seed by seed.

    Args:
        curves: by the name of the frozen weights, for each measured step a value a seed.
        base: which of them the others are compared with.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), width_ratios=[1.5, 1])
    others = [name for name in curves if name != base]
    for (name, points), (color, marker) in zip(curves.items(), LOOKS, strict=False):
        means = [float(np.mean(values)) for values in points.values()]
        left.plot(list(points), means, marker=marker, markersize=5, color=color, label=name)
        if name != base:
            end = max(points)
            gaps = np.array(points[end]) - np.array(curves[base][end])
            place = others.index(name)
            right.plot([place] * len(gaps), gaps, marker, color=color, alpha=0.75)
            right.hlines(gaps.mean(), place - 0.25, place + 0.25, color=color)
    left.set(xlabel="step", ylabel="validation, bits per byte")
    left.legend(fontsize=9)
    right.axhline(0, color=plots.BLACK, linewidth=1)
    right.set_xticks(range(len(others)), others)
    right.set(xlim=(-0.6, len(others) - 0.4), ylabel=f"more than {base}, at the end")
    right.grid(axis="x", visible=False)
    return fig
