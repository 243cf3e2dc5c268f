"""Drawings and plots of the lesson that compares the ways of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.GREEN, "s"), (plots.RED, "D"), (plots.ORANGE, "^"), (plots.PURPLE, "v"))
HATCHES = ("", "//", "..", "xx")


def facts() -> plots.Drawing:
    """A fact on its way through a frozen model with an adapter, and what is counted."""
    draw = plots.Drawing(5.5, 2.3, "random facts: what is known of them is in the adapter, or nowhere")
    draw.box("key", 0.05, 0.2, text="key\n2 tokens", shape="at random", width=0.85, height=0.8)
    draw.box("model", 1.5, -0.05, text="the model", shape="frozen", look="gone", width=1.05)
    draw.box("adapter", 1.5, 1.2, text="A and B", shape="r (in + out) numbers", look="weight", width=1.35)
    draw.box("odds", 3.05, 0.2, text="p of each token", shape="1,024", width=1.1)
    draw.box("value", 3.05, 1.3, text="value\n1 token", shape="10 bits", width=0.85, height=0.8)
    draw.box("missing", 4.5, 0.2, text="-log2 p(value)", shape="bits missing", look="loss", width=1.0)
    draw.arrow("key", "model").arrow("model", "odds").arrow("adapter", "model").arrow("odds", "missing")
    draw.arrow("value", "missing")
    draw.arrow("odds", "adapter", bend=-0.2, dashed=True)
    return draw


def products() -> plots.Drawing:
    """The matrix products of a step for one weight, in full fine-tuning and beside an adapter."""
    draw = plots.Drawing(4.9, 2.6, "the products of one layer in a step, with x (n, in) and the gradient g (n, out)")
    heads = ("forward", "backward: for x", "backward: for W")
    texts = ("x Wᵀ", "g W", "gᵀ x")
    for column, (head, text) in enumerate(zip(heads, texts, strict=True)):
        draw.note(0.95 + 1.35 * column, -0.25, head)
        for row in range(2):
            left_out = row == 1 and column == 2
            draw.box(
                f"{column} {row}", 0.95 + 1.35 * column, 0.4 + 0.95 * row, text="left out" if left_out else text,
                shape="" if left_out else "2 n in out FLOPs", look="gone" if left_out else "step", width=1.15,
            )  # fmt: skip
    draw.note(-0.1, 0.4, "full")
    draw.note(-0.1, 1.35, "W frozen")
    return draw


def capacity(
    curves: Mapping[int, Mapping[int, Sequence[float]]], full: Mapping[int, float], predicted: Mapping[int, float],
    threshold: float,
) -> Any:  # fmt: skip
    """Bits missing by the number of facts: a line a rank, and the number at which each was to fall behind.

    Args:
        curves: by rank, for each number of facts a value a seed.
        full: of full fine-tuning.
        predicted: by rank.
        threshold: what counts as behind.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.4))
    for (rank, points), (color, marker) in zip(curves.items(), LOOKS, strict=False):
        numbers, values = list(points), np.array([list(each) for each in points.values()])
        ax.plot(numbers, values.mean(axis=1), color=color, marker=marker, markersize=5, label=f"r = {rank}")
        ax.fill_between(numbers, values.min(axis=1), values.max(axis=1), color=color, alpha=0.2, linewidth=0)
        if rank in predicted:
            ax.axvline(predicted[rank], color=color, linestyle=":", linewidth=1.6)
    ax.plot(list(full), list(full.values()), color=plots.BLACK, marker="x", linestyle="-.", label="full")
    ax.axhline(threshold, color="#888888", linestyle="--", linewidth=1)
    ax.set(xscale="log", xlabel="facts, one target token each", ylabel="bits missing a fact, of 10")
    marks = sorted({number for points in curves.values() for number in points} & {2**k for k in range(4, 13)})
    ax.set_xticks(marks, [f"{mark:,}" for mark in marks])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return fig


def flops_by_rank(ranks: Sequence[int], shares: Mapping[str, Sequence[float]]) -> Any:
    """FLOPs of a step with an adapter over those of a full one, by rank, a line a model."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3))
    for (name, values), (color, marker) in zip(shares.items(), LOOKS, strict=False):
        ax.plot(ranks, values, color=color, marker=marker, markersize=5, label=name)
    ax.axhline(1, color=plots.BLACK, linewidth=1)
    ax.axhline(2 / 3, color="#888888", linestyle="--", linewidth=1)
    ax.set(xscale="log", xlabel="rank r", ylabel="FLOPs of a step, over full", ylim=(0.6, 1.4))
    ax.set_xticks(list(ranks), [str(rank) for rank in ranks])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return fig


def equal_flops(curves: Mapping[str, tuple[Sequence[float], np.ndarray]]) -> Any:
    """Bits per byte by FLOPs spent, a line a way.

    Args:
        curves: by name, the FLOPs (1e9) at each measurement, and bits per byte, (seeds, measurements).
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, (spent, values)), (color, marker) in zip(curves.items(), LOOKS, strict=False):
        ax.plot(spent, values.mean(axis=0), color=color, marker=marker, markersize=5, label=name)
        ax.fill_between(spent, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)
    ax.set(xlabel="FLOPs spent, 10⁹", ylabel="prose, bits per byte")
    ax.legend(fontsize=9)
    return fig


def under_a_line(rows: Mapping[str, Mapping[str, float]], memory: float) -> Any:
    """The terms of some budgets as bars, and the memory that there is.

    Args:
        rows: by the way's name, bytes by the term's name.
        memory: bytes.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 0.9 + 0.42 * len(rows)))
    places, begun = np.arange(len(rows)), np.zeros(len(rows))
    terms = list(next(iter(rows.values())))
    colors = (plots.SKY, plots.ORANGE, plots.GREEN, plots.RED)
    for term, color, hatch in zip(terms, colors, HATCHES, strict=False):
        sizes = np.array([row[term] / 1e6 for row in rows.values()])
        ax.barh(places, sizes, 0.65, begun, color=color, hatch=hatch, edgecolor="white", label=term)
        begun += sizes
    ax.axvline(memory / 1e6, color=plots.BLACK, linestyle="--", linewidth=1.5)
    ax.text(memory / 1e6, -0.62, " the budget", fontsize=9, va="bottom")
    ax.set_yticks(places, list(rows))
    ax.set(xlabel="MB at the highest moment", ylim=(len(rows) - 0.5, -0.95))
    ax.grid(axis="y", visible=False)
    fig.legend(fontsize=9, ncols=len(terms), loc="outside lower center")
    return fig


def scores(rows: Mapping[str, tuple[float, float, str]]) -> Any:
    """Published scores with their standard errors.

    Args:
        rows: by name: score, standard error, and what is written beside it.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 0.8 + 0.45 * len(rows)))
    for place, ((score, error, text), (color, marker)) in enumerate(zip(rows.values(), LOOKS, strict=False)):
        ax.errorbar(score, place, xerr=error, color=color, marker=marker, capsize=4, markersize=7)
        ax.text(score, place - 0.2, text, fontsize=9, ha="center", va="bottom")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel="share of right answers, and one standard error", ylim=(len(rows) - 0.5, -0.75))
    ax.grid(axis="y", visible=False)
    return fig


def chart(branches: Sequence[tuple[str, str, str]], last: tuple[str, str]) -> plots.Drawing:
    """Questions from above, each with what to do on a yes, and the claim that it rests on.

    Args:
        branches: question, answer, claim.
        last: what to do when every answer was no, and its claim.
    """
    draw = plots.Drawing(5.1, len(branches) + 1.05, "yes: to the right; no: down")
    for row, (question, answer, claim) in enumerate(branches):
        draw.box(f"q {row}", 0.6, row, text=question, look="step", width=1.9, height=0.62)
        draw.box(f"a {row}", 3.3, row, text=answer, shape=claim, look="weight", width=2.4, height=0.72)
        draw.arrow(f"q {row}", f"a {row}", "yes")
        if row:
            draw.arrow(f"q {row - 1}", f"q {row}", "no")
    draw.box("last", 0.6, len(branches), text=last[0], shape=last[1], look="weight", width=1.9, height=0.72)
    draw.arrow(f"q {len(branches) - 1}", "last", "no")
    return draw
