"""Drawings and plots of the lesson on quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from course import plots

LOOKS = ((plots.BLUE, "o", "-"), (plots.ORANGE, "s", "--"), (plots.GREEN, "D", "-."), (plots.RED, "^", ":"))


def pipeline() -> plots.Drawing:
    """From a text and a layer to integers in a file."""
    draw = plots.Drawing(5.7, 2.65, "one layer: what a method may look at, and what it leaves")
    draw.box("text", 0.05, 0.2, text="some text", width=0.9)
    draw.box("x", 1.45, 0.2, text="inputs X", shape="n, d_in", width=1.0)
    draw.box("h", 2.85, 0.2, text="H = X^T X / n", shape="d_in, d_in", width=1.15)
    draw.box("w", 1.45, 1.3, text="weight W", shape="d_out, d_in", look="weight", width=1.0)
    draw.box("method", 2.85, 1.3, text="method", look="step", width=1.0)
    draw.box("q", 4.4, 0.95, text="integers", shape="d_out, d_in", look="weight", width=1.1)
    draw.box("s", 4.4, 1.72, text="scales", shape="d_out, groups", look="weight", width=1.1)
    draw.chain("text", "x", "h").chain("w", "method")
    draw.arrow("h", "method", "calibration", dashed=True)
    draw.arrow("method", "q").arrow("method", "s")
    draw.group(["q", "s"], "kept in the file")
    return draw


def two_grids(weights: Sequence[float], grids: Mapping[str, Sequence[float]], rounded: Mapping[str, Any]) -> Any:
    """Weights on a line, and what the integers of some grids stand for.

    Args:
        weights: as they were.
        grids: by name, the values that a weight can become.
        rounded: by name, what the weights became.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(grids), 1, figsize=(7, 2.9), sharex=True)
    for ax, (name, values) in zip(axes, grids.items(), strict=True):
        ax.vlines(values, -0.15, 0.15, color=plots.BLUE, linewidth=2.5)
        ax.plot(weights, [0.75] * len(weights), "o", color=plots.ORANGE, clip_on=False)
        for before, after in zip(weights, rounded[name], strict=True):
            ax.annotate(
                "", xy=(after, 0.17), xytext=(before, 0.7), arrowprops={"arrowstyle": "-|>", "color": "#444444"}
            )
        ax.axhline(0, color="#999999", linewidth=0.8)
        ax.set(ylim=(-0.3, 0.95), yticks=[], title=name)
        ax.spines["left"].set_visible(False)
        ax.grid(False)
    axes[-1].set_xlabel("weight (orange), value of the grid (blue)")
    return fig


def granularity(found: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """Error against bits of a weight: a line for each number of bits, a point for each size of a group."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, points), (color, marker, line) in zip(found.items(), LOOKS, strict=False):
        ax.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=line, label=name)
    ax.set(xlabel="bits a weight, scales of 16 bits included", ylabel="|change of W| / |W|", yscale="log")
    ax.set_yticks([0.05, 0.1, 0.2, 0.5], ["0.05", "0.1", "0.2", "0.5"])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return fig


def channels(largest: Mapping[str, Tensor]) -> Any:
    """The largest input of each channel of some layers."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(largest), figsize=(7, 3.0))
    for ax, (name, sizes) in zip(axes, largest.items(), strict=True):
        ax.plot(sizes.numpy(), ".", markersize=2.5, color=plots.BLUE)
        top = int(sizes.argmax())
        ax.plot([top], [float(sizes[top])], "D", color=plots.RED)
        end = top > len(sizes) / 2
        ax.annotate(f"channel {top}", (top, float(sizes[top])), xytext=(-6 if end else 6, -3),
                    textcoords="offset points", ha="right" if end else "left", fontsize=9)  # fmt: skip
        ax.axhline(float(sizes.median()), color="black", linewidth=1, linestyle="--")
        ax.set(yscale="log", xlabel="input channel", title=name)
    axes[0].set_ylabel("max |x| (dashed: median channel)")
    return fig


def columns() -> plots.Drawing:
    """A matrix in the middle of GPTQ."""
    draw = plots.Drawing(5.4, 1.55, "GPTQ, at column j of a matrix")
    draw.box("done", 0.55, 0.55, text="columns before j\nintegers, fixed", look="weight", width=1.7, height=0.9)
    draw.box("now", 2.1, 0.55, text="column j\nrounded now", look="loss", width=1.0, height=0.9)
    draw.box("free", 3.85, 0.55, text="columns after j\nstill real numbers", width=1.85, height=0.9)
    draw.arrow("now", "free", bend=-0.6)
    draw.note(3.0, -0.2, "error of column j x row j of U / U_jj")
    return draw


def fold() -> plots.Drawing:
    """A scale that is multiplied in at one place and divided out at another."""
    draw = plots.Drawing(5.6, 2.4, "a scale s for each channel: the product is the same")
    for row, (inputs, weight, norm, name) in enumerate((
        ("x", "W", "norm\nweight g", "before"), ("x / s", "W diag(s)", "norm\nweight g / s", "after"),
    )):  # fmt: skip
        draw.box(f"g{row}", 0.55, 0.25 + 1.15 * row, text=norm, look="weight", width=1.1, height=0.68)
        draw.box(f"x{row}", 2.05, 0.25 + 1.15 * row, text=inputs, width=0.8)
        draw.box(f"w{row}", 3.5, 0.25 + 1.15 * row, text=weight, look="weight", width=1.0)
        draw.box(f"y{row}", 4.7, 0.25 + 1.15 * row, text="W x", width=0.62)
        draw.chain(f"g{row}", f"x{row}", f"w{row}", f"y{row}")
        draw.note(-0.25, 0.25 + 1.15 * row, name)
    return draw


def migration(panels: Mapping[str, tuple[Tensor, Tensor]]) -> Any:
    """The largest input and the largest weight of each channel, before and after a scale.

    Args:
        panels: by name, (max |x|, max |w|) of each channel, sorted alike.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(panels), figsize=(7, 3.0), sharey=True)
    for ax, (name, (inputs, weights)) in zip(axes, panels.items(), strict=True):
        ax.plot(inputs.numpy(), ".", markersize=3, color=plots.BLUE, label="max |x|")
        ax.plot(weights.numpy(), "x", markersize=2.5, color=plots.ORANGE, label="max |w|")
        ax.set(yscale="log", xlabel="channels, by their inputs", title=name)
    axes[0].legend(fontsize=9, markerscale=2)
    return fig


def search(curves: Mapping[str, Mapping[float, float]]) -> Any:
    """What a search over alpha saw: the error of the outputs, over that at alpha 0."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.8))
    for (name, losses), (color, marker, line) in zip(curves.items(), LOOKS, strict=False):
        ax.plot(list(losses), [loss / losses[0] for loss in losses.values()], color=color, marker=marker,
                linestyle=line, label=name)  # fmt: skip
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(xlabel="alpha", ylabel="error of the outputs\nover that at alpha 0")
    ax.legend(fontsize=9)
    return fig


def costs(rows: Mapping[str, Sequence[tuple[float, float, float]]], title: str = "") -> Any:
    """Loss against bits of a weight: a line a method.

    Args:
        rows: by method, (bits of a weight, nats more, standard error).
        title: above.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.4))
    for (name, points), (color, marker, line) in zip(rows.items(), LOOKS, strict=False):
        bits, nats, errors = zip(*sorted(points), strict=True)
        ax.errorbar(bits, nats, yerr=errors, color=color, marker=marker, linestyle=line, label=name, capsize=3)
    ax.set(xlabel="bits a weight, as stored", ylabel="nats a token more", yscale="log", title=title)
    ax.legend(fontsize=9)
    return fig
