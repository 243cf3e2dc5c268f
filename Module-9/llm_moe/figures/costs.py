"""Drawings and plots of the lesson on what experts cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.RED, "D"), (plots.GREEN, "s"), (plots.ORANGE, "^"))
BATCH = "requests in a batch"


def held_and_used() -> plots.Drawing:
    """Two tokens in a layer of eight experts: which weights each meets."""
    draw = plots.Drawing(6.6, 3.1, "two tokens, eight experts in memory, two of them a token")
    draw.box("a", 1.6, 0.0, text="token A", width=0.8, height=0.5).box(
        "b", 4.0, 0.0, text="token B", width=0.8, height=0.5
    )
    for number in range(8):
        look = "weight" if number in (1, 4, 6) else "gone"
        draw.box(f"e{number}", 0.05 + 0.79 * number, 1.2, text=f"expert {number}", look=look, width=0.7, height=0.55)
    draw.box("sum a", 1.6, 2.3, text="sum, times weights", width=1.2, height=0.5, look="step")
    draw.box("sum b", 4.0, 2.3, text="sum, times weights", width=1.2, height=0.5, look="step")
    for token, chosen in (("a", (1, 4)), ("b", (4, 6))):
        for number in chosen:
            draw.arrow(token, f"e{number}").arrow(f"e{number}", f"sum {token}")
    return draw


def two_ranks() -> plots.Drawing:
    """Expert parallelism: tokens travel to the rank of their expert and back; weights stay."""
    draw = plots.Drawing(6.9, 3.5, "weights stay, tokens travel")
    for rank, row in ((0, 0.25), (1, 2.3)):
        own = f"{4 * rank} to {4 * rank + 3}"
        draw.box(f"x{rank}", 0.0, row, text="own tokens", shape="N, C", width=0.8)
        draw.box(f"s{rank}", 1.3, row, text="router,\nsort by expert", look="step", width=0.95)
        draw.box(f"e{rank}", 3.2, row, text=f"experts {own}", shape="E/R of E", look="weight", width=1.05)
        draw.box(f"b{rank}", 5.0, row, text="weigh,\nadd up", look="step", width=0.75)
        draw.box(f"y{rank}", 6.0, row, text="output", shape="N, C", width=0.65)
    for rank in (0, 1):
        draw.group([f"x{rank}", f"s{rank}", f"e{rank}", f"b{rank}", f"y{rank}"], f"rank {rank}")
        draw.chain(f"x{rank}", f"s{rank}", f"e{rank}", f"b{rank}", f"y{rank}")
        draw.arrow(f"s{rank}", f"e{1 - rank}").arrow(f"e{rank}", f"b{1 - rank}")
    draw.ax.text(2.4, 1.7, "all-to-all:\nrows out", ha="center", va="center", fontsize=9, color="#333333")
    draw.ax.text(8.9, 1.7, "all-to-all:\nrows back", ha="center", va="center", fontsize=9, color="#333333")
    return draw


def filled(loads: Mapping[str, Sequence[int]]) -> Any:
    """Rows of each expert in the batched form: those that a token needs, and those that only fill up."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(loads), figsize=(7, 2.9), sharey=True, squeeze=False)
    for ax, (name, values) in zip(axes[0], loads.items(), strict=True):
        sent = np.asarray(values)
        ax.bar(range(len(sent)), sent, color=plots.BLUE, label="rows of tokens")
        ax.bar(range(len(sent)), sent.max() - sent, bottom=sent, color="white", edgecolor=plots.RED, hatch="//",
               label="filled up with zeros")  # fmt: skip
        ax.set(title=name, xlabel="expert", xticks=range(len(sent)))
        ax.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("rows")
    axes[0, 0].legend(fontsize=9, loc="upper left")
    return fig


def forms(seconds: Mapping[str, Mapping[str, Any]]) -> Any:
    """Milliseconds of each form, bars side by side for each way that tokens are sent; lines span the quartiles.

    Args:
        seconds: `llm_precision.meters.Seconds` by the name of the way, by the name of the form.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.9))
    width = 0.8 / len(seconds)
    for place, (name, by_form) in enumerate(seconds.items()):
        at = np.arange(len(by_form)) + (place - (len(seconds) - 1) / 2) * width
        middle = np.array([each.median for each in by_form.values()]) * 1e3
        low = middle - np.array([each.low for each in by_form.values()]) * 1e3
        high = np.array([each.high for each in by_form.values()]) * 1e3 - middle
        ax.bar(at, middle, width * 0.92, yerr=[low, high], label=name, color=LOOKS[place][0], capsize=3)
        ax.set_xticks(range(len(by_form)), list(by_form))
    ax.set_ylabel("milliseconds")
    ax.legend(fontsize=9)
    ax.grid(axis="x", visible=False)
    return fig


def met(
    batches: Sequence[int], predicted: Mapping[str, Sequence[float]], counted: Mapping[str, Sequence[float]]
) -> Any:
    """The share of all experts that a batch meets: lines by the formula, points counted."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.0))
    for (name, line), (color, marker) in zip(predicted.items(), LOOKS, strict=False):
        ax.plot(batches, line, color=color, label=f"{name}, formula")
        if name in counted:
            ax.plot(batches, counted[name], color=color, marker=marker, linestyle="", label=f"{name}, drawn")
    ax.set(xscale="log", xlabel="tokens in a batch, B", ylabel="share of the experts met", ylim=(0, 1.03))
    ax.set_xscale("log", base=2)
    ax.legend(fontsize=9)
    return fig


def against_batch(
    batches: Sequence[int], lines: Mapping[str, Sequence[float]], points: Mapping[str, Sequence[float]], label: str,
    level: float | None = None,
) -> Any:  # fmt: skip
    """Something by the batch, on two logarithmic axes: lines predicted, points measured.

    Args:
        batches: of all lines and points.
        lines, points: by name; points of a name have its line's colour.
        label: of the vertical axis.
        level: where to draw a thin black line.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.3))
    for (name, values), (color, marker) in zip(lines.items(), LOOKS, strict=False):
        ax.plot(batches, values, color=color, label=f"{name}, predicted" if points else name)
        if name in points:
            ax.plot(
                batches, points[name], color=color, marker=marker, linestyle=":", linewidth=1, label=f"{name}, measured"
            )
    if level is not None:
        ax.axhline(level, color="black", linewidth=1)
    ax.set(yscale="log", xlabel=BATCH, ylabel=label)
    ax.set_xscale("log", base=2)
    ax.legend(fontsize=9)
    return fig


def gains(batches: Sequence[int], lines: Mapping[str, Sequence[float]], points: Mapping[str, Sequence[float]]) -> Any:
    """How many times faster than the dense model of the same size a sparse one is: lines predicted, points measured."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.1))
    for (name, values), (color, marker) in zip(lines.items(), LOOKS, strict=False):
        ax.plot(batches, values, color=color, label=f"{name}, predicted")
        if name in points:
            ax.plot(
                batches, points[name], color=color, marker=marker, linestyle=":", linewidth=1, label=f"{name}, measured"
            )
    ax.axhline(1.0, color="black", linewidth=1)
    ax.set(xlabel=BATCH, ylabel="times as fast as dense", ylim=(0, None))
    ax.set_xscale("log", base=2)
    ax.legend(fontsize=9)
    return fig
