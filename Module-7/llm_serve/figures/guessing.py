"""Drawings and plots of the lesson on speculation and determinism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.GREEN, "s"), (plots.RED, "D"), (plots.ORANGE, "^"))


def round_of_guesses() -> plots.Drawing:
    """One round: guesses, one look at all of them, and what stays."""
    draw = plots.Drawing(6.2, 3.1, "one round: three guesses, one look")
    draw.box("text", 0.1, 1.0, text="the text\nso far", width=0.9, height=0.8)
    for place in range(3):
        draw.box(f"g{place}", 1.6 + place, 0.2, text=f"guess {place + 1}", look="step", width=0.8)
    draw.box("model", 2.6, 1.15, text="the model: one step over 4 tokens", look="weight", width=3.2, height=0.6)
    marks = (("stays", "data"), ("stays", "data"), ("does not", "gone"), ("never asked", "gone"))
    for place, (text, look) in enumerate(marks[:3]):
        draw.box(f"p{place}", 1.6 + place, 2.1, text=text, look=look, width=0.85)
    draw.box("new", 5.0, 2.1, text="drawn anew,\nin its place", look="loss", width=1.1, height=0.75)
    draw.arrow("text", "g0")
    draw.chain("g0", "g1", "g2")
    for place in range(3):
        draw.arrow(f"g{place}", "model").arrow("model", f"p{place}")
    draw.arrow("text", "model").arrow("p2", "new")
    return draw


def overlap(p: Sequence[float], q: Sequence[float]) -> Any:
    """Two distributions over a few tokens: what they share stays, the rest of p is drawn from."""
    import matplotlib.pyplot as plt

    of_p, of_q = np.asarray(p), np.asarray(q)
    places, both = np.arange(len(of_p)), np.minimum(of_p, of_q)
    fig, ax = plt.subplots(figsize=(7, 2.8))
    ax.bar(places - 0.2, both, 0.36, color=plots.BLUE, alpha=0.8, label="shared: a guess stays")
    ax.bar(places - 0.2, of_p - both, 0.36, bottom=both, color=plots.ORANGE, hatch="//", edgecolor="white",
           label="of p only: drawn from, when a guess falls")  # fmt: skip
    ax.bar(places + 0.2, of_q, 0.36, color="white", edgecolor="black", label="q: what guesses are drawn from")
    ax.set_xticks(places, [f"token {place}" for place in places])
    ax.set(ylabel="probability")
    ax.legend(fontsize=9)
    ax.grid(axis="x", visible=False)
    return fig


def gains(measured: Mapping[str, Mapping[int, float]], predicted: Mapping[str, Mapping[int, float]], label: str) -> Any:
    """Something by the number of guesses: points measured, lines predicted.

    Args:
        measured: by name, by guesses.
        predicted: likewise.
        label: of the vertical axis.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, values), (color, marker) in zip(measured.items(), LOOKS, strict=False):
        line = predicted[name]
        ax.plot(list(line), list(line.values()), color=color, linestyle="--", linewidth=1.2)
        ax.plot(list(values), list(values.values()), color=color, marker=marker, linestyle="", label=name)
    ax.plot([], [], color="black", linestyle="--", linewidth=1.2, label="predicted")
    ax.axhline(1.0, color="black", linewidth=1)
    ax.set(xlabel="guesses in a round, k", ylabel=label)
    ax.legend(fontsize=9)
    return fig


def margins(margin: Any, errors: Mapping[str, float]) -> Any:
    """How far the likeliest token is ahead, over all places, and how large the errors of each precision are."""
    import matplotlib.pyplot as plt

    ordered = np.sort(np.asarray(margin))
    fig, ax = plt.subplots(figsize=(7, 3.2))
    ax.plot(ordered, (1 + np.arange(len(ordered))) / len(ordered), color=plots.BLUE)
    for (name, error), (color, _), height in zip(errors.items(), LOOKS[1:], (0.5, 0.7, 0.9), strict=False):
        ax.axvline(error, color=color, linestyle="--")
        ax.text(error * 1.1, height, name, color=color, fontsize=9, va="center")
    ax.set(xscale="log", xlabel="logit of the likeliest token less that of the next", ylabel="share of places below")
    return fig
