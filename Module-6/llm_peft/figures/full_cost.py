"""Drawings and plots of the lesson on what a full fine-tuning costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llm_core.costs.memory import Curve

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.RED, "D"), (plots.GREEN, "s"), (plots.ORANGE, "^"))
HATCHES = ("", "//", "..", "xx")


def moments() -> plots.Drawing:
    """What is held at three moments of a step."""
    draw = plots.Drawing(4.9, 4.1, "three moments of one step, N parameters in float32")
    rows = ("activations", "gradients", "averages", "weights")
    texts = {"weights": "4 N bytes", "averages": "8 N bytes", "gradients": "4 N bytes", "activations": "by tokens"}
    held = {
        "forward": ("weights", "averages", "activations"), "backward": rows,
        "optimiser's step": ("weights", "averages", "gradients"),
    }  # fmt: skip
    for column, (moment, there) in enumerate(held.items()):
        draw.note(0.7 + 1.45 * column, -0.3, moment)
        for place, name in enumerate(rows):
            look = "gone" if name not in there else "data" if name == "activations" else "weight"
            look = "loss" if name == "gradients" and name in there else look
            text = f"{name}\n{texts[name]}" if name in there else f"no {name}"
            draw.box(f"{name} {column}", 0.7 + 1.45 * column, 0.5 + 0.85 * place, text=text, look=look, width=1.05)
    for row in rows:
        draw.chain(*(f"{row} {column}" for column in range(3)))
    return draw


def change() -> plots.Drawing:
    """The change of a weight, and the terms of its singular value decomposition."""
    draw = plots.Drawing(5.5, 2.5, "one matrix of the model: its change, and the change cut to rank 2")
    draw.box("after", 0.0, -0.1, text="W after", shape="outside, inside", look="weight", width=0.9)
    draw.box("before", 0.0, 1.3, text="W before", shape="outside, inside", look="gone", width=0.9)
    draw.box("change", 1.3, 0.6, text="the change", shape="after - before", look="loss", width=0.95)
    draw.box("first", 2.85, -0.1, text="σ₁ u₁ v₁ᵀ", shape="rank 1", width=1.0)
    draw.box("second", 2.85, 0.6, text="σ₂ u₂ v₂ᵀ", shape="rank 1", width=1.0)
    draw.box("rest", 2.85, 1.3, text="all others", shape="dropped", look="gone", width=1.0)
    draw.box("cut", 4.4, 0.25, text="W before\n+ two terms", shape="measured", look="weight", width=1.0, height=0.75)
    draw.arrow("after", "change").arrow("before", "change", dashed=True)
    draw.arrow("change", "first").arrow("change", "second").arrow("change", "rest", dashed=True)
    draw.arrow("first", "cut").arrow("second", "cut")
    return draw


def timeline(curve: Curve, held: int, lines: Mapping[str, float]) -> Any:
    """Bytes over a real step.

    Args:
        curve: from `memory_curve`, with the parts "forward", "backward" and "update".
        held: bytes that were there before.
        lines: bytes at which to draw a line, by name.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    begin = curve.parts["forward"][0]
    seconds = np.array(curve.seconds) - begin
    total = (np.array(curve.held) + held) / 1e9
    ax.plot(seconds, total, color=plots.BLUE, drawstyle="steps-post")
    for (name, height), style in zip(lines.items(), ("--", ":", "-."), strict=False):
        ax.axhline(height / 1e9, color=plots.BLACK, linestyle=style, linewidth=1.2, label=name)
    top = 1.2 * total.max()
    for name, (start, end) in curve.parts.items():
        ax.axvline(end - begin, color="#999999", linewidth=1)
        ax.text((start + end) / 2 - begin, 0.97 * top, name, fontsize=9, ha="center", va="top")
    ax.set(xlabel="time of one step", ylabel="GB", ylim=(0, top))
    last = max(end for _, end in curve.parts.values()) - begin
    ax.set_xticks([0, last / 2, last], ["begin", "half the time", "end"])
    ax.legend(fontsize=9, loc="lower center", ncols=3)
    return fig


def by_length(times: Sequence[int], parts: Mapping[str, Sequence[float]], checkpointed: Sequence[float]) -> Any:
    """The terms of a budget in one bar for each length of a row.

    Args:
        times: tokens of a row.
        parts: by name, bytes at each length.
        checkpointed: bytes in all with gradient checkpointing; nan where it was not asked for.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    places, under = np.arange(len(times)), np.zeros(len(times))
    colors = (plots.BLUE, plots.ORANGE, plots.RED, plots.GREEN)
    for (name, values), color, hatch in zip(parts.items(), colors, HATCHES, strict=False):
        ax.bar(places, np.array(values) / 1e9, 0.6, under, color=color, hatch=hatch, edgecolor="white", label=name)
        under += np.array(values) / 1e9
    ax.plot(places, np.array(checkpointed) / 1e9, "D", color=plots.BLACK, label="all, with checkpointing", markersize=6)
    ax.set_xticks(places, [f"{time:,}" for time in times])
    ax.set(xlabel="tokens of the batch", ylabel="GB")
    ax.legend(fontsize=9)
    return fig


def learned_and_lost(rates: Sequence[float], values: Mapping[str, np.ndarray], before: Mapping[str, float]) -> Any:
    """Bits per byte of two domains by learning rate.

    Args:
        rates: at their highest.
        values: by domain, (rates, seeds).
        before: by domain, before the fine-tuning.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, each), (color, marker) in zip(values.items(), LOOKS, strict=False):
        ax.plot(rates, each.mean(axis=1), color=color, marker=marker, label=f"{name}, after")
        ax.fill_between(rates, each.min(axis=1), each.max(axis=1), color=color, alpha=0.25, linewidth=0)
        ax.axhline(before[name], color=color, linestyle="--", linewidth=1.2, label=f"{name}, before")
    ax.set(xscale="log", xlabel="learning rate", ylabel="bits per byte")
    ax.legend(fontsize=9)
    return fig


def spectrum(sigmas: Mapping[str, Sequence[float]], edge: float) -> Any:
    """Singular values by their number, and the largest that a random matrix would have."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, values), (color, _), style in zip(sigmas.items(), LOOKS, ("-", "--", "-."), strict=False):
        ax.plot(range(1, len(values) + 1), values, color=color, linestyle=style, linewidth=2, label=name)
    ax.axhline(edge, color=plots.BLACK, linestyle=":", linewidth=1.5, label="equation 5")
    ax.set(xscale="log", yscale="log", xlabel="number of the singular value", ylabel="singular value")
    ax.set_ylim(bottom=max(values[len(values) * 9 // 10] for values in sigmas.values()) / 30)
    ax.legend(fontsize=9)
    return fig


def cut_change(ranks: Sequence[int], curves: Mapping[str, Sequence[float]], full: Mapping[str, float]) -> Any:
    """Shares that a cut change keeps, by rank.

    Args:
        ranks: that are kept.
        curves: by name, shares from 0 to 1.
        full: by name, the share of the change that is not cut, for some of these.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, values), (color, marker) in zip(curves.items(), LOOKS, strict=False):
        ax.plot(ranks, 100 * np.array(values), color=color, marker=marker, label=name)
        if name in full:
            ax.axhline(100 * full[name], color=color, linestyle="--", linewidth=1)
    ax.set(xscale="log", xlabel="rank that is kept; dashed: not cut", ylabel="% of the whole fine-tuning")
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.minorticks_off()
    ax.set_ylim(0, 112)
    ax.legend(fontsize=9, loc="lower right")
    return fig
