"""Drawings and plots of the lesson on a model that reads pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llm_align.evaluate.intervals import Interval

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.RED, "D"), (plots.GREEN, "s"), (plots.ORANGE, "^"))


def parts() -> plots.Drawing:
    """Tower, projector and language model, with shapes; only the projector is learned."""
    draw = plots.Drawing(5.2, 3.1, "a reader: two frozen halves, and a projector between them")
    draw.box("picture", 0.0, 0.1, shape="3, H, H", width=0.85)
    draw.box("tower", 1.35, 0.1, text="vision tower\n(frozen)", look="step", width=1.05, height=0.7)
    draw.box("features", 2.7, 0.1, shape="P, C_v", width=0.9)
    draw.box("projector", 4.1, 0.1, text="projector\n(trained)", look="weight", width=1.1, height=0.7)
    draw.box("row", 0.0, 1.1, text="row of ids", shape="T", width=0.85)
    draw.box("table", 1.35, 1.1, text="embedding\n(frozen)", look="step", width=1.05, height=0.7)
    draw.box("words", 2.7, 1.1, text="vectors", shape="T, C", width=0.9)
    draw.box("places", 4.1, 1.1, text="into the places\nof <image>", look="step", width=1.1, height=0.7)
    draw.box("language", 4.1, 2.1, text="language model\n(frozen)", look="step", width=1.1, height=0.7)
    draw.box("caption", 2.7, 2.1, text="caption", look="loss", width=0.9)
    draw.chain("picture", "tower", "features", "projector").arrow("projector", "places", "P, C", above=False)
    draw.chain("row", "table", "words", "places", "language", "caption")
    return draw


def row(words: Sequence[str], labels: Sequence[int], ignored: int) -> Any:
    """A row of tokens, and below each its label: a target in red, an ignored place in grey."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 1.5))
    for place, (word, label) in enumerate(zip(words, labels, strict=True)):
        image, target = word == "<image>", label != ignored
        looks = ((0.0, word, plots.ORANGE if image else plots.BLUE),
                 (1.1, word if target else str(ignored), plots.RED if target else "#999999"))  # fmt: skip
        for y, text, color in looks:
            ax.add_patch(plt.Rectangle((place + 0.04, y), 0.92, 0.9, facecolor=color, alpha=0.25, edgecolor=color))
            ax.text(place + 0.5, y + 0.45, text.replace("<image>", "img"), ha="center", va="center", fontsize=8.5)
    ax.set(xlim=(-1.3, len(words)), ylim=(2.1, -0.1), xticks=[], yticks=[])
    ax.text(-0.1, 0.45, "row", ha="right", va="center")
    ax.text(-0.1, 1.55, "labels", ha="right", va="center")
    ax.axis("off")
    return fig


def shares(rows: Mapping[str, Mapping[str, Interval]], guessing: float | None = None, y: str = "captions right") -> Any:
    """Shares with their intervals: a group of bars for each row, a bar for each name."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    names = list(next(iter(rows.values())))
    width = 0.8 / len(rows)
    for number, ((label, found), (color, _)) in enumerate(zip(rows.items(), LOOKS, strict=False)):
        at = np.arange(len(names)) + (number - (len(rows) - 1) / 2) * width
        values = np.array([found[name].value for name in names])
        spread = [values - [found[name].low for name in names], [found[name].high for name in names] - values]
        ax.bar(at, values, width * 0.9, yerr=np.abs(spread), color=color, alpha=0.7, capsize=4, label=label)
        for x, name in zip(at, names, strict=True):
            ax.text(x, found[name].high + 0.02, f"{found[name].value:.1%}", ha="center", fontsize=9)
    if guessing is not None:
        ax.axhline(guessing, color="black", linestyle="--", linewidth=1)
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel=y, ylim=(0, 1.15), yticks=np.linspace(0, 1, 6))
    if len(rows) > 1:
        ax.legend(fontsize=9, ncols=len(rows), loc="upper center", bbox_to_anchor=(0.5, 1.17))
    return fig


def losses(curves: Mapping[str, Sequence[float]], window: int = 20) -> Any:
    """Loss by step, each the mean over some steps before."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.9))
    for name, values in curves.items():
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        ax.plot(np.arange(len(smooth)) + window, smooth, label=name)
    ax.set(xlabel="steps", ylabel="loss in nats", yscale="log")
    ax.legend(fontsize=9)
    return fig


def near(cosines: Any, captions: Sequence[str], words: Sequence[str]) -> Any:
    """Cosines of pictures' vectors (rows) with words (columns); a frame where the word is in the caption."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 0.33 * len(captions) + 1.0))
    image = plots.heatmap(ax, cosines, captions, words, vmin=-0.4, vmax=0.4, cmap="RdBu")
    ax.tick_params(axis="x", rotation=60)
    ax.tick_params(labelsize=8)
    for y, caption in enumerate(captions):
        for x, word in enumerate(words):
            if word in caption.split():
                ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.6))
    fig.colorbar(image, ax=ax, label="cosine")
    return fig


def prefill(tokens: Sequence[int], flops: Sequence[float], seconds: Sequence[Any]) -> Any:
    """By image tokens: FLOPs of the prompt by formula, and `llm_precision.meters.Seconds` beside them."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 2.9))
    axes[0].plot(tokens, np.array(flops) / 1e9, color=plots.BLUE, marker="o")
    axes[0].set(title="billion FLOPs, by formula")
    middle = np.array([each.median for each in seconds]) * 1e3
    spread = [middle - [each.low * 1e3 for each in seconds], [each.high * 1e3 for each in seconds] - middle]
    axes[1].errorbar(tokens, middle, yerr=spread, color=plots.RED, marker="D", capsize=3)
    axes[1].set(title="milliseconds, measured")
    for ax in axes:
        ax.set(xlabel="image tokens", ylim=(0, None))
    return fig
