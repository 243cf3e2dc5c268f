"""Drawings and plots of the lesson on direct preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o", "-"), (plots.RED, "D", "--"), (plots.GREEN, "s", "-."), (plots.ORANGE, "^", ":"))


def two_roads() -> plots.Drawing:
    """From pairs to a policy: through a reward model and its optimisation, or by one loss."""
    draw = plots.Drawing(5.6, 3.0, "two roads from pairs to a policy")
    draw.box("pairs", 0.1, 1.0, shape="chosen, rejected", width=1.0)
    draw.box("reward", 1.6, 0.0, text="reward model", shape="R(y)", look="weight", width=1.0)
    draw.box("draw", 2.95, 0.0, text="draw answers,\nraise the good", look="step", width=1.15)
    draw.box("dpo", 2.3, 2.0, text="DPO loss", shape="steps as in any training", look="loss", width=1.7)
    draw.box("policy", 4.4, 1.0, text="policy", shape="log p(y)", look="weight", width=0.9)
    draw.box("reference", 2.3, 1.0, text="reference", shape="frozen: log p(y)", look="gone", width=1.2)
    draw.chain("pairs", "reward", "draw", "policy").chain("pairs", "dpo", "policy")
    draw.arrow("reference", "draw", dashed=True).arrow("reference", "dpo", dashed=True)
    return draw


def shared_weights() -> plots.Drawing:
    """Three answers made of three weights: what one weight does to each of them."""
    draw = plots.Drawing(5.4, 3.0, 'to lower "minutes" lowers both answers, and the third gains')
    draw.box("w1", 0.2, 0.0, text='weight of "205"', look="step", width=1.1)
    draw.box("w2", 0.2, 1.0, text='of "minutes"', shape="pushed down", look="loss", width=1.1)
    draw.box("w3", 0.2, 2.0, text='of "unknown"', look="step", width=1.1)
    draw.box("c", 3.2, 0.0, text='chosen: "205 minutes"', look="weight", width=1.9)
    draw.box("r", 3.2, 1.0, text='rejected: "205 minutes minutes"', look="data", width=2.3)
    draw.box("o", 3.2, 2.0, text='a third: "unknown"', look="weight", width=1.9)
    draw.arrow("w1", "c", "1").arrow("w1", "r").arrow("w2", "c").arrow("w2", "r", "2").arrow("w3", "o", "1")
    return draw


def closed_form(reference: Sequence[float], ways: Mapping[float, Sequence[float]], names: Sequence[str]) -> Any:
    """The best policy over a few answers for several beta, beside the reference."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.7))
    bars = {"reference": reference, **{f"beta = {beta:g}": values for beta, values in ways.items()}}
    places, width = np.arange(len(names)), 0.8 / len(bars)
    colors = ("white", plots.SKY, plots.BLUE, plots.GREEN, plots.ORANGE)
    for number, ((name, values), color) in enumerate(zip(bars.items(), colors, strict=False)):
        shift = (number - (len(bars) - 1) / 2) * width
        ax.bar(places + shift, values, width * 0.92, color=color, edgecolor="#444444", label=name)
    ax.set_xticks(places, names)
    ax.set(ylabel="probability", ylim=(0, 1))
    ax.legend(fontsize=9, ncols=2)
    ax.grid(axis="x", visible=False)
    return fig


def three_answers(ways: Mapping[str, Any], names: Sequence[str]) -> Any:
    """How the probabilities of a few answers move while a policy learns from one pair.

    Args:
        ways: by name of the policy, probabilities (steps, answers).
        names: of the answers.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(ways), figsize=(7, 2.9), sharey=True)
    for ax, (title, values) in zip(axes, ways.items(), strict=True):
        for line, name, (color, _, style) in zip(np.asarray(values).T, names, LOOKS, strict=False):
            ax.plot(line, color=color, linestyle=style, label=name)
        ax.set(title=title, xlabel="steps", ylim=(0, 1))
    axes[0].set(ylabel="probability")
    axes[-1].legend(fontsize=9)
    return fig


def predicted_changes(kinds: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """For pairs of several kinds: the change of the chosen answer, predicted by the gradient, and measured.

    Args:
        kinds: by name, (predicted, measured) of each pair in nats.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.4))
    largest = max(abs(value) for pairs in kinds.values() for pair in pairs for value in pair)
    ax.plot([-largest, largest], [-largest, largest], color="#888888", linewidth=1)
    for (name, pairs), (color, marker, _) in zip(kinds.items(), LOOKS, strict=False):
        ax.plot(*zip(*pairs, strict=True), marker, color=color, label=name, markersize=5, alpha=0.8)
    ax.axhline(0, color="black", linewidth=1)
    ax.axvline(0, color="black", linewidth=1)
    ax.set(xlabel="predicted change of log p(chosen), nats", ylabel="measured")
    ax.set_xscale("symlog", linthresh=largest / 1000)
    ax.set_yscale("symlog", linthresh=largest / 1000)
    ax.legend(fontsize=9)
    return fig


def step_sizes(sizes: Sequence[float], kinds: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Any:
    """The chosen answers after one step of several sizes: measured as points, the first order as lines.

    Args:
        sizes: learning rates.
        kinds: by name, predicted and measured changes in nats.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.0))
    for (name, (predicted, measured)), (color, marker, _) in zip(kinds.items(), LOOKS, strict=False):
        ax.plot(sizes, predicted, color=color, linestyle="--", linewidth=1.2)
        ax.plot(sizes, measured, color=color, marker=marker, linestyle="", label=name)
    ax.plot([], [], color="black", linestyle="--", linewidth=1.2, label="first order")
    ax.axhline(0, color="black", linewidth=1)
    ax.set(xscale="log", xlabel="learning rate of one plain step", ylabel="change of\nlog p(chosen), nats")
    ax.set_yscale("symlog", linthresh=1e-4)
    locator: Any = ax.yaxis.get_major_locator()
    locator.set_params(numticks=9)
    ax.legend(fontsize=9)
    return fig


def margin_and_sides(runs: Mapping[str, Any]) -> Any:
    """Log-ratios of held-out answers over the steps of several seeds, for several kinds of pairs.

    Args:
        runs: by kind, an array (seeds, points, 3) of step, chosen and rejected log-ratio in nats.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(runs), figsize=(7, 3.3))
    for ax, (title, values) in zip(np.atleast_1d(axes), runs.items(), strict=True):
        values = np.asarray(values)
        steps, chosen, rejected = values[0, :, 0], values[:, :, 1], values[:, :, 2]
        lines = (("margin", chosen - rejected), ("rejected", rejected), ("chosen", chosen))
        for (name, line), (color, marker, style) in zip(lines, (LOOKS[2], LOOKS[1], LOOKS[0]), strict=True):
            ax.plot(steps, line.mean(0), color=color, linestyle=style, marker=marker, markersize=4, label=name)
            ax.fill_between(steps, line.min(0), line.max(0), color=color, alpha=0.2)
        ax.axhline(0, color="black", linewidth=1)
        ax.set(title=title, xlabel="steps")
    np.atleast_1d(axes)[0].set(ylabel="nats, against the reference")
    np.atleast_1d(axes)[0].legend(fontsize=9)
    return fig


def roads(runs: Mapping[str, Any]) -> Any:
    """What became of the chosen answers on the way to a margin; a line a seed, a point each time it was looked at.

    Args:
        runs: by name, an array (seeds, points, 3) of step, chosen and rejected log-ratio in nats.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.4))
    for (name, values), (color, marker, style) in zip(runs.items(), LOOKS, strict=False):
        for number, line in enumerate(np.asarray(values)):
            margin = line[:, 1] - line[:, 2]
            ax.plot(margin, line[:, 1], color=color, linestyle=style, marker=marker, markersize=4, alpha=0.8,
                    label=None if number else name)  # fmt: skip
    ax.axhline(0, color="black", linewidth=1)
    ax.set(xlabel="margin, nats", ylabel="chosen against\nthe reference, nats")
    ax.legend(fontsize=9)
    return fig
