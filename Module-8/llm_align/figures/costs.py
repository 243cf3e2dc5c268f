"""Drawings and plots of the lesson on what an alignment costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = {
    "base": ("#444444", "X"), "SFT": (plots.GREEN, "s"), "DPO": (plots.ORANGE, "^"), "PPO": (plots.BLUE, "o"),
    "GRPO": (plots.RED, "D"),
}  # fmt: skip


def five_models() -> plots.Drawing:
    """One base model, four trainings beside each other, and what is measured on all five."""
    draw = plots.Drawing(6.0, 4.2, "one base, four trainings of 1,024 answers each, one table")
    draw.box("base", 0.1, 1.5, shape="P weights", look="weight", width=0.95)
    draw.box("SFT", 1.8, 0.0, shape="right answers", width=1.2)
    draw.box("DPO", 1.8, 1.0, shape="pairs, a reference", width=1.2)
    draw.box("PPO", 1.8, 2.0, shape="own answers, values", width=1.2)
    draw.box("GRPO", 1.8, 3.0, shape="own answers, groups", width=1.2)
    draw.box("gain", 3.6, 0.5, text="what it brought", shape="score, interval", look="step", width=1.2)
    draw.box("cost", 3.6, 1.5, text="what it took", shape="KL, length, forgetting", look="loss", width=1.35)
    draw.box("price", 3.6, 2.5, text="what was paid", shape="bytes, seconds", look="step", width=1.2)
    draw.box("table", 5.0, 1.5, text="the table", width=0.8)
    for name in ("SFT", "DPO", "PPO", "GRPO"):
        draw.arrow("base", name)
        draw.arrow(name, "cost")
    draw.arrow("SFT", "gain").arrow("GRPO", "price").arrow("gain", "table").arrow("cost", "table")
    return draw.arrow("price", "table")


def coverage(shares: Sequence[float], curves: Mapping[str, Sequence[float]], number: int) -> Any:
    """How often an interval of 95% holds the true share, over that share."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.8))
    looks = ((plots.RED, "--"), (plots.BLUE, "-"))
    for (name, values), (color, style) in zip(curves.items(), looks, strict=False):
        ax.plot(shares, values, color=color, linestyle=style, linewidth=1.3, label=name)
    ax.axhline(0.95, color="#888888", linewidth=1)
    ax.set(xlabel="true share", ylabel="coverage", ylim=(0.5, 1.01), title=f"{number} questions")
    ax.legend(fontsize=9, loc="lower center")
    return fig


def estimators(distances: Sequence[float], spreads: Mapping[str, Sequence[float]]) -> Any:
    """Standard deviation of a single draw of each estimator, over the true KL divergence, both on log scales."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.8))
    for (name, values), color, style in zip(
        spreads.items(), (plots.BLUE, plots.RED, plots.GREEN), ("-", "--", "-."), strict=False
    ):
        ax.plot(distances, values, color=color, linestyle=style, label=name)
    ax.set(xscale="log", yscale="log", xlabel="true KL, nats", ylabel="standard deviation\nof one draw")
    ax.legend(fontsize=9)
    return fig


def frontier(paths: Mapping[str, Sequence[Mapping[str, float]]], axes_of: Sequence[tuple[str, str]]) -> Any:
    """Two scores over the distance from the base, for each method a line through its checkpoints.

    Args:
        paths: by method, a line for each checkpoint with "kl" and the scores; the last is the trained model.
        axes_of: names of the two scores, with what they are called.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(axes_of), figsize=(7, 3.2))
    for ax, (score, title) in zip(axes, axes_of, strict=True):
        for method, lines in paths.items():
            color, marker = LOOKS[method]
            across, up = [line["kl"] for line in lines], [line[score] for line in lines]
            ax.plot(across, up, color=color, marker=marker, markersize=4, label=method)
            ax.plot(across[-1:], up[-1:], color=color, marker=marker, markersize=8)
        ax.set(xlabel="KL from the base, nats an answer", title=title, ylim=(0, None))
    axes[0].legend(fontsize=8)
    return fig


def forgetting(gains: Mapping[str, Any], lost: Mapping[str, Mapping[str, Any]]) -> Any:
    """What was forgotten of other texts over what was gained, with the intervals of both.

    Args:
        gains: by method, an interval of the score's difference to the base.
        lost: by text and method, an interval of the difference in bits per byte.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(lost), figsize=(7, 3.0))
    for ax, (text, by_method) in zip(axes, lost.items(), strict=True):
        for method, change in by_method.items():
            color, marker = LOOKS[method]
            gain = gains[method]
            ax.errorbar(
                [gain.value], [change.value], xerr=[[gain.value - gain.low], [gain.high - gain.value]],
                yerr=[[change.value - change.low], [change.high - change.value]], color=color, marker=marker,
                markersize=7, capsize=3, label=method,
            )  # fmt: skip
        ax.axhline(0, color="#888888", linewidth=1)
        ax.set(xlabel="score gained", title=f"{text}: bits per byte forgotten")
    axes[0].legend(fontsize=8)
    return fig


def bills(seconds: Mapping[str, tuple[float, float]], weights: Mapping[str, tuple[float, float]]) -> Any:
    """Seconds of a training, writing and the rest; bytes a weight of the policy, trained models and frozen ones."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 2.8))
    parts = ((seconds, "seconds", ("writing", "all else")), (weights, "bytes a weight", ("trained", "frozen")))
    for ax, (rows, label, names) in zip(axes, parts, strict=True):
        first, second = np.array(list(rows.values())).T
        ax.barh(list(rows), first, color=plots.ORANGE, label=names[0])
        ax.barh(list(rows), second, left=first, color=plots.SKY, hatch="//", edgecolor="white", label=names[1])
        ax.invert_yaxis()
        ax.grid(axis="y")
        ax.set(xlabel=label)
        ax.legend(fontsize=8)
    return fig


def which(notes: Mapping[str, str]) -> plots.Drawing:
    """What do you have, and which method follows; each with a number of the lesson that speaks for it or against it.

    Args:
        notes: by method, a line.
    """
    draw = plots.Drawing(6.2, 5.0, "ask from the top; take the first yes")
    asks = (
        "a checker that\nasks what you mean?", "pairs near what\nthe policy writes?",
        "right answers of\na new kind?", "a judge that is\nonly nearly right?",
    )  # fmt: skip
    methods = ("GRPO", "DPO", "SFT", "PPO")
    for row, (ask, method) in enumerate(zip(asks, methods, strict=True)):
        draw.box(ask, 0.4, 0.1 + 1.1 * row, look="step", width=1.5, height=0.75)
        draw.box(method, 2.2, 0.1 + 1.1 * row, look="weight", width=0.8)
        draw.box(f"note {method}", 4.4, 0.1 + 1.1 * row, text=notes[method], look="gone", width=2.4, height=0.85)
        draw.arrow(ask, method, "yes")
        draw.arrow(method, f"note {method}", dashed=True)
    draw.note(2.6, 4.1, "memory for one model only? adapters: policy and reference share weights of 2 bytes")
    draw.arrow(asks[0], asks[1], "no").arrow(asks[1], asks[2], "no").arrow(asks[2], asks[3], "no")
    return draw
