"""Drawings and plots of the lesson on reward models and PPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o", "-"), (plots.RED, "D", "--"), (plots.GREEN, "s", "-."), (plots.ORANGE, "^", ":"))


def two_halves() -> plots.Drawing:
    """From pairs to a reward model, and from its rewards to an update of the policy."""
    draw = plots.Drawing(6.3, 3.8, "a preference becomes a reward (above), a reward an update (below)")
    draw.box("pairs", 0.2, 0.15, text="pairs", shape="chosen, rejected", width=1.2)
    draw.box("reward", 2.3, 0.15, text="reward model", shape="B, T to B", look="weight", width=1.1)
    draw.box("sigmoid", 4.5, 0.15, text="-log sigmoid of\nthe difference", look="loss", width=1.2)
    draw.box("policy", 0.2, 2.0, text="policy", shape="log p", look="weight", width=0.9)
    draw.box("answer", 1.55, 2.0, text="answers", shape="B, T", width=0.8)
    draw.box("number", 2.9, 2.0, text="a number each", shape="B", width=0.95)
    draw.box("advantage", 4.05, 2.0, text="advantages", shape="B, T", look="step", width=0.9)
    draw.box("clip", 5.3, 2.0, text="clipped loss", look="loss", width=0.9)
    draw.box("step", 2.9, 3.0, text="a step of AdamW", look="step", width=1.1, height=0.5)
    draw.chain("pairs", "reward", "sigmoid").chain("policy", "answer", "number", "advantage", "clip")
    draw.arrow("reward", "number", "reads them").arrow("clip", "step").arrow("step", "policy", dashed=True)
    return draw


def four_models() -> plots.Drawing:
    """Who is trained, who is frozen, and what each gives to a step of PPO."""
    draw = plots.Drawing(5.8, 4.1, "orange is trained, dashed is frozen")
    draw.box("answers", 0.1, 1.5, text="answers", shape="B, T", width=0.9)
    draw.box("policy", 1.6, 0.0, text="policy", shape="16 bytes a weight", look="weight", width=1.2)
    draw.box("reference", 1.6, 1.0, text="reference", shape="4 bytes", look="gone", width=1.2)
    draw.box("reward", 1.6, 2.0, text="reward model", shape="4 bytes", look="gone", width=1.2)
    draw.box("value", 1.6, 3.0, text="value model", shape="16 bytes", look="weight", width=1.2)
    draw.box("paid", 3.3, 1.5, text="rewards\na token", shape="B, T - 1", look="step", width=0.85, height=0.8)
    draw.box("gae", 3.3, 3.0, text="advantages", shape="B, T - 1", look="step", width=0.9)
    draw.box("loss", 4.7, 0.0, text="clipped loss", look="loss", width=0.9)
    draw.box("squares", 4.7, 3.0, text="squared error", look="loss", width=0.95)
    for name in ("policy", "reference", "reward", "value"):
        draw.arrow("answers", name)
    draw.arrow("policy", "loss", "log p").arrow("policy", "paid", "log p").arrow("reference", "paid")
    draw.arrow("reward", "paid", "at the end", above=False).arrow("paid", "gae").arrow("value", "gae", "V")
    draw.arrow("gae", "loss", "A").arrow("gae", "squares", "returns")
    return draw


def calibration(noises: Sequence[float], accuracies: Mapping[str, Any], bins: Mapping[str, Any]) -> Any:
    """Accuracy over the share of wrong labels, and what a prediction is worth.

    Args:
        noises: shares of training labels that were flipped.
        accuracies: by name, (noises, seeds).
        bins: by name, (bins, 3) of predicted probability, observed share, and its standard error.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2))
    for (name, values), (color, marker, style) in zip(accuracies.items(), LOOKS, strict=False):
        values = np.asarray(values)
        left.plot(noises, values.mean(1), color=color, linestyle=style)
        for column in values.T:
            left.plot(noises, column, marker, color=color, label=name if column is values.T[0] else None)
        left.plot([], [], marker, color=color, label=name)
    left.plot(noises, 1 - np.asarray(noises), color="#888888", linewidth=1, label="1 - noise")
    left.set(xlabel="share of flipped labels", ylabel="accuracy", ylim=(0.4, 1.02))
    left.legend(fontsize=8)
    right.plot([0.5, 1], [0.5, 1], color="#888888", linewidth=1)
    for (name, values), (color, marker, style) in zip(bins.items(), LOOKS, strict=False):
        predicted, observed, error = np.asarray(values).T
        right.errorbar(
            predicted, observed, yerr=error, color=color, marker=marker, linestyle=style, label=name, capsize=3
        )
    right.set(xlabel="predicted probability", ylabel="share of labels that agree")
    right.legend(fontsize=8)
    return fig


def variance_of_baselines(baselines: Sequence[float], variances: Sequence[float], best: float, mean: float) -> Any:
    """Variance of the score estimator over the number that is taken from every reward."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.6))
    ax.plot(baselines, variances, color=plots.BLUE)
    for where, text, (color, _, style) in ((mean, "mean reward", LOOKS[1]), (best, "least", LOOKS[2])):
        ax.axvline(where, color=color, linestyle=style, linewidth=1.2, label=text)
    ax.set(xlabel="baseline", ylabel="variance of the\ngradient's estimate", ylim=(0, None))
    ax.legend(fontsize=9)
    return fig


def clipped(ratios: Sequence[float], objectives: Mapping[str, Sequence[float]], low: float, high: float) -> Any:
    """What is made large, over the ratio, for an advantage above 0 and one below; flat is where no gradient is."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 2.8))
    for ax, (title, values), (color, _, _) in zip(axes, objectives.items(), LOOKS, strict=False):
        ax.axvspan(low, high, color="#EEEEEE")
        ax.plot(ratios, values, color=color)
        ax.plot([1], [float(np.interp(1.0, ratios, values))], "o", color="black")
        ax.set(title=title, xlabel="ratio p / p old")
    axes[0].set(ylabel="objective")
    return fig


def bias_and_spread(lams: Sequence[float], bias: Sequence[float], spread: Sequence[float]) -> Any:
    """Of an advantage's estimate over lambda: how far its mean is from the truth, and its standard deviation."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.8))
    for name, values, (color, marker, style) in (("bias", bias, LOOKS[1]), ("standard deviation", spread, LOOKS[0])):
        ax.plot(lams, values, color=color, marker=marker, linestyle=style, label=name)
    ax.set(xlabel="lambda", ylabel="of the estimate", ylim=(0, None))
    ax.legend(fontsize=9)
    return fig


def over_optimised(model: Sequence[float], checked: Sequence[float], kl: Sequence[float]) -> Any:
    """The reward that is learned from and the one that is meant, over the distance from the reference."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 3.0))
    for ax, across, label in (
        (axes[0], np.arange(len(kl)), "round"),
        (axes[1], kl, "KL from the reference, nats an answer"),
    ):
        ax.plot(across, model, color=plots.BLUE, marker="o", markersize=4, linestyle="-" if ax is axes[0] else "")
        ax.set(xlabel=label)
        other = ax.twinx()
        other.plot(across, checked, color=plots.RED, marker="D", markersize=4, linestyle="--" if ax is axes[0] else "")
        other.set_ylim(-0.03, 1.03)
        other.grid(False)
        other.tick_params(colors=plots.RED)
        ax.tick_params(axis="y", colors=plots.BLUE)
    axes[0].set_ylabel("reward model's number (circles)", color=plots.BLUE)
    other.set_ylabel("share that parses (diamonds)", color=plots.RED)
    return fig


def prices(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Any:
    """Of runs at several prices of distance, over the rounds: how far they are, what the model says, what is true.

    Args:
        runs: by name, a line for each round with "kl", "reward" and "parses".
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(7, 2.7))
    labels = {"kl": "KL, nats an answer", "reward": "reward model's number", "parses": "share that parses"}
    for ax, (name, title) in zip(axes, labels.items(), strict=True):
        for (run, lines), (color, marker, style) in zip(runs.items(), LOOKS[1::-1], strict=False):
            ax.plot(
                [line[name] for line in lines], color=color, marker=marker, linestyle=style, markersize=4, label=run
            )
        ax.set(title=title, xlabel="round")
    axes[0].set_yscale("symlog", linthresh=1)
    axes[-1].set_ylim(-0.03, 1.03)
    axes[1].legend(fontsize=9)
    return fig
