"""Drawings and plots of the lesson on how a token chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.RED, "D"), (plots.GREEN, "s"), (plots.ORANGE, "^"))


def layer() -> plots.Drawing:
    """One token in a sparse layer with four experts, of which it meets two."""
    draw = plots.Drawing(6.3, 4.2, "one token in a sparse layer: E = 4 experts, k = 2 chosen")
    draw.box("x", 0.0, 1.5, text="a token", shape="C", width=0.8)
    draw.box("router", 1.2, 0.0, text="router", shape="E, C", look="weight", width=0.8)
    draw.box("probs", 2.45, 0.0, text="softmax", shape="E", look="step", width=0.85)
    draw.box("choice", 3.7, 0.0, text="the k largest", shape="k", look="loss", width=1.0)
    draw.box("weights", 5.1, 0.0, text="weights", shape="k, sum 1", look="data", width=0.95)
    for number in range(4):
        chosen = number in (0, 2)
        text = f"expert {number}" if chosen else f"expert {number}: no work"
        draw.box(f"e{number}", 2.6, 1.05 + 0.7 * number, text=text, look="weight" if chosen else "gone", width=1.5,
                 height=0.5)  # fmt: skip
    draw.box("sum", 5.1, 1.75, text="weighted sum", shape="C", look="step", width=1.05)
    draw.chain("x", "router", "probs", "choice", "weights", "sum")
    for number in (0, 2):
        draw.arrow("x", f"e{number}").arrow(f"e{number}", "sum")
    return draw


def circle() -> plots.Drawing:
    """Why an expert that is ahead gets further ahead, and where each remedy acts."""
    draw = plots.Drawing(6.0, 3.0, "ahead gets further ahead")
    draw.box("bias", 0.4, 0.0, text="bias step: changes\nthe choice", width=1.5, height=0.7)
    draw.box("aux", 0.4, 1.8, text="balancing loss: a second\ngradient for the logit", width=1.75, height=0.7)
    draw.box("sent", 2.6, 0.0, text="more tokens\nare sent to it", look="loss", width=1.2, height=0.7)
    draw.box("learns", 4.7, 0.0, text="more gradient:\nit learns faster", look="step", width=1.3, height=0.7)
    draw.box("helps", 4.7, 1.8, text="its output lowers\nthe loss", look="step", width=1.3, height=0.7)
    draw.box("logit", 2.6, 1.8, text="its logit rises,\nothers' fall", look="step", width=1.3, height=0.7)
    draw.chain("sent", "learns", "helps", "logit", "sent")
    draw.arrow("bias", "sent", dashed=True).arrow("aux", "logit", dashed=True)
    return draw


def loads(by_run: Mapping[str, Any], ceiling: float) -> Any:
    """The load of each expert over steps, a map for each run.

    Args:
        by_run: (steps, experts), by name.
        ceiling: the load that has the darkest colour.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(by_run), 1, figsize=(7, 1.15 + 1.25 * len(by_run)), sharex=True, squeeze=False)
    image: Any = None
    for ax, (name, values) in zip(axes[:, 0], by_run.items(), strict=True):
        image = plots.heatmap(ax, np.asarray(values).T, vmin=0, vmax=ceiling)
        ax.set(title=name, ylabel="expert")
    axes[-1, 0].set(xlabel="step")
    fig.colorbar(image, ax=axes[:, 0].tolist(), label="load (1 is balance)")
    return fig


def opposite_halves(shares: Mapping[str, Sequence[float]], losses: Mapping[str, float]) -> Any:
    """Where the choices of each layer go, and of all layers together, with the balancing loss of each."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(shares), figsize=(7, 2.6), sharey=True)
    for ax, (name, values), (color, _) in zip(axes, shares.items(), LOOKS, strict=False):
        ax.bar(range(len(values)), values, color=color)
        ax.axhline(1 / len(values), color="black", linestyle="--", linewidth=1)
        ax.set(title=f"{name}: loss {losses[name]:.1f}", xlabel="expert", xticks=range(len(values)))
        ax.grid(axis="x", visible=False)
    axes[0].set(ylabel="share of the choices")
    return fig


def load_and_loss(fullest: Mapping[str, Sequence[float]], val_loss: Mapping[str, Sequence[float]]) -> Any:
    """The load of the fullest expert and the language model's loss, a point for each seed."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 2.9), sharey=True)
    for ax, values, label in zip(axes, (fullest, val_loss), ("load of the fullest expert", "validation loss (nats)"),
                                 strict=True):  # fmt: skip
        for place, (name, (color, marker)) in enumerate(zip(values, LOOKS, strict=False)):
            ax.plot(values[name], [place] * len(values[name]), color=color, marker=marker, linestyle="", alpha=0.8)
        ax.set_yticks(range(len(values)), list(values))
        ax.set(xlabel=label)
    axes[0].axvline(1.0, color="black", linestyle="--", linewidth=1)
    axes[0].invert_yaxis()
    return fig


def head_start(loads_after: Mapping[str, Sequence[float]]) -> Any:
    """The load of one expert at the end, by what was done at the beginning; a point for each seed."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.5))
    for place, values in enumerate(loads_after.values()):
        color, marker = LOOKS[place % len(LOOKS)]
        ax.plot(values, [place] * len(values), color=color, marker=marker, linestyle="", alpha=0.8)
    ax.set_yticks(range(len(loads_after)), list(loads_after))
    ax.axvline(1.0, color="black", linestyle="--", linewidth=1)
    ax.set(xlabel="load of expert 3 over the last 16 steps")
    ax.invert_yaxis()
    return fig


def dropped(factors: Sequence[float], predicted: Sequence[float], measured: Mapping[str, Sequence[float]]) -> Any:
    """The share of choices that is dropped by the capacity factor: a line predicted, points measured."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.0))
    ax.plot(factors, predicted, color="black", linestyle="--", linewidth=1.2, label="predicted: random choices")
    for (name, values), (color, marker) in zip(measured.items(), LOOKS, strict=False):
        ax.plot(factors, values, color=color, marker=marker, linestyle="", label=name)
    ax.set(xlabel="capacity factor", ylabel="share dropped", ylim=(-0.03, 1.25))
    ax.legend(fontsize=9, ncols=2, loc="upper right")
    return fig
