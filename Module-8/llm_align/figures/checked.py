"""Drawings and plots of the lesson on groups of answers and rewards that a program gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o", "-"), (plots.RED, "D", "--"), (plots.GREEN, "s", "-."), (plots.ORANGE, "^", ":"))
PANELS = {"reward": "reward", "length": "length, tokens", "entropy": "entropy, nats a token", "kl": "KL, nats a token"}


def one_round() -> plots.Drawing:
    """From a prompt to a group of answers, to rewards, to advantages, to a step."""
    draw = plots.Drawing(6.4, 3.6, "a round: the group itself says what could be expected")
    draw.box("policy", 0.1, 1.1, shape="weights", look="weight", width=0.8)
    draw.box("answers", 1.5, 1.1, text="G answers\nto one prompt", shape="G, T", width=1.15, height=0.8)
    draw.box("program", 2.9, 0.0, text="a program", shape="right or wrong", look="gone", width=1.1)
    draw.box("rewards", 2.9, 1.1, shape="G", width=0.8)
    draw.box("mean", 4.2, 0.0, text="their mean", shape="1", look="step", width=0.9)
    draw.box("advantages", 4.2, 1.1, shape="G", look="step", width=0.95)
    draw.box("loss", 5.4, 1.1, text="clipped loss", shape="tokens", look="loss", width=0.9)
    draw.chain("policy", "answers", "rewards", "advantages", "loss").chain("program", "rewards")
    draw.arrow("rewards", "mean").arrow("mean", "advantages", "minus")
    draw.box("step", 2.7, 2.6, text="optimiser step, then new answers", look="step", width=2.2)
    draw.chain("loss", "step", "policy")
    return draw


def two_distributions() -> plots.Drawing:
    """Who draws a token, and who learns from it: two programs that may not agree."""
    draw = plots.Drawing(5.6, 2.4, "the answers come from one distribution and are learned under another")
    draw.box("weights", 0.1, 0.7, shape="the same", look="weight", width=0.9)
    draw.box("engine", 1.6, 0.1, text="engine", shape="top-p, other width", width=1.3)
    draw.box("trainer", 1.6, 1.3, text="trainer", shape="full softmax, float32", width=1.4)
    draw.box("q", 3.1, 0.1, text="q(token)", shape="drew it", width=0.9)
    draw.box("p", 3.1, 1.3, text="p(token)", shape="is trained", width=0.9)
    draw.box("weight", 4.5, 0.7, text="weight\np / q", look="step", width=0.85)
    draw.arrow("weights", "engine").arrow("weights", "trainer").chain("engine", "q", "weight")
    draw.chain("trainer", "p", "weight")
    return draw


def equal_groups(shares: Sequence[float], groups: Mapping[int, Sequence[float]], measured: Any) -> Any:
    """How often all answers of a group have the same reward, and the spread that advantages are divided by.

    Args:
        shares: of right answers.
        groups: by size, the probability at each share.
        measured: rows of (share of right answers of a prompt, share of its groups that were equal).
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.0))
    for (size, values), (color, _, style) in zip(groups.items(), LOOKS, strict=False):
        left.plot(shares, values, color=color, linestyle=style, label=f"G = {size}")
    left.plot(*np.asarray(measured).T, "k.", markersize=7, label="drawn, G = 8")
    left.set(xlabel="p, share of right answers", ylabel="share of equal groups", ylim=(-0.03, 1.03))
    left.legend(fontsize=8)
    p = np.clip(np.asarray(shares), 1e-3, 1 - 1e-3)
    lines = {"r - mean": p * (1 - p), "divided by std": np.sqrt(p * (1 - p))}
    for (name, values), (color, _, style) in zip(lines.items(), LOOKS, strict=False):
        right.plot(p, values / values.max(), color=color, linestyle=style, label=name)
    right.set(xlabel="p, share of right answers", ylabel="pull, beside that at p = 1/2", ylim=(0, 1.05))
    right.legend(fontsize=8)
    return fig


def weights_by_length(lengths: Sequence[int], weights: Mapping[str, Sequence[float]]) -> Any:
    """Gradient weight of a token and of a whole answer, over the answer's length."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 2.9))
    for (name, values), (color, marker, style) in zip(weights.items(), LOOKS, strict=False):
        each = np.asarray(values)
        axes[0].plot(lengths, each, color=color, marker=marker, linestyle=style, label=name)
        axes[1].plot(lengths, each * np.asarray(lengths), color=color, marker=marker, linestyle=style)
    axes[0].set(xlabel="tokens of the answer", ylabel="weight of a token", ylim=(0, None))
    axes[1].set(xlabel="tokens of the answer", ylabel="weight of the answer", ylim=(0, None))
    axes[0].legend(fontsize=9, title="normaliser")
    return fig


def four_panels(runs: Mapping[str, Sequence[Mapping[str, float]]], body: str = "with_body") -> Any:
    """Reward, length, entropy and KL over the steps of one or several runs.

    Args:
        runs: by name, a line of measures for each step.
        body: name of a second reward that is drawn thin beside the first, where a line has it.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 2, figsize=(7, 4.6), sharex=True)
    for (run, lines), (color, marker, style) in zip(runs.items(), LOOKS, strict=False):
        steps = np.arange(1, len(lines) + 1)
        for ax, (name, title) in zip(axes.flat, PANELS.items(), strict=True):
            ax.plot(
                steps,
                [line[name] for line in lines],
                color=color,
                marker=marker,
                markersize=4,
                linestyle=style,
                label=run,
            )
            ax.set(title=title)
        if body in lines[0]:
            axes[0, 0].plot(
                steps, [line[body] for line in lines], color=color, linewidth=0.9, linestyle=":", label="has a body"
            )
    for ax in axes.flat:
        ax.set(ylim=(0, None))
    for ax in axes[1]:
        ax.set(xlabel="step")
    axes[0, 0].set(ylim=(0, 1.03))
    axes[1, 1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="upper left")
    return fig


def truncation(caps: Sequence[float], bias: Sequence[float], spread: Sequence[float]) -> Any:
    """Of a corrected estimate over the largest weight: how far its mean is off, and its standard deviation."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.6))
    lines = (("bias", bias, LOOKS[1]), ("standard deviation", spread, LOOKS[0]))
    for name, values, (color, marker, style) in lines:
        ax.plot(caps, values, color=color, marker=marker, markersize=4, linestyle=style, label=name)
    ax.set(xlabel="largest weight", ylabel="of the estimate", ylim=(0, None))
    ax.legend(fontsize=9)
    return fig
