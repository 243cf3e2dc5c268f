"""Drawings and plots of the lesson on answering from a passage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from course import plots

KINDS = (("follows the passage", plots.BLUE), ("keeps to memory", plots.ORANGE), ("something else", "#BBBBBB"))


def the_way() -> plots.Drawing:
    """From a folder and a question to an answer whose citations are checked."""
    draw = plots.Drawing(6.0, 2.5, "from a question to an answer that can be checked")
    draw.box("folder", 0.0, 0.0, text="a folder", width=0.8)
    draw.box("store", 1.5, 0.0, text="the store", shape="one file", look="weight", width=0.95)
    draw.box("passages", 3.0, 0.0, text="k passages", shape="ranked", width=0.9)
    draw.box("prompt", 4.6, 0.0, text="the prompt", shape="at most budget", look="step", width=1.2)
    draw.box("question", 1.5, 1.4, text="a question", look="data", width=0.9)
    draw.box("checked", 3.0, 1.4, text="citations\nchecked", look="step", width=0.9)
    draw.box("answer", 4.6, 1.4, text="the answer", shape="with [n]", look="loss", width=1.0)
    draw.arrow("folder", "store", "new").arrow("store", "passages").arrow("passages", "prompt")
    draw.arrow("question", "store").arrow("prompt", "answer", "a model").arrow("answer", "checked")
    draw.arrow("passages", "checked")
    return draw


def the_prompt() -> plots.Drawing:
    """What of a prompt is read for special tokens, and what is letters only."""
    draw = plots.Drawing(6.2, 3.3, "a prompt in five parts: only the template's own text may become special tokens")
    parts = (("start of the\nsystem's turn", "weight"), ("the rules", "data"), ("end of turn,\nuser's turn", "weight"),
             ("<mark> blocks,\nthe question", "data"), ("end of turn,\nassistant's turn", "weight"))  # fmt: skip
    for place, (text, look) in enumerate(parts):
        row = 1.0 if look == "weight" else 1.5
        draw.box(str(place), 0.15 + 1.22 * place, row, text=text, look=look, width=1.05, height=0.65)
    draw.box("parsed", 2.59, 0.0, text="parsed for special tokens", look="weight", width=1.75)
    draw.box("letters", 2.59, 2.45, text="encoded as letters", look="data", width=1.5)
    for part in ("0", "2", "4"):
        draw.arrow("parsed", part)
    for part in ("1", "3"):
        draw.arrow("letters", part)
    return draw


def rounds(table: Mapping[str, Mapping[str, int]], title: str) -> Any:
    """What a store holds after each event, a group of bars for each."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.7))
    kinds = list(next(iter(table.values())))
    for shift, (kind, color) in enumerate(zip(kinds, plots.COLORS, strict=False)):
        places = [row + 0.8 * (shift + 0.5) / len(kinds) - 0.4 for row in range(len(table))]
        bars = ax.bar(places, [each[kind] for each in table.values()], 0.8 / len(kinds), color=color, label=kind)
        ax.bar_label(bars, fontsize=8)
    ax.set_xticks(range(len(table)), list(table))
    ax.set(ylabel="documents", title=title)
    ax.grid(axis="x")
    ax.margins(y=0.28)
    ax.legend(fontsize=8, ncol=len(kinds))
    return fig


def shares(counts: Mapping[str, Sequence[int]], intervals: Mapping[str, Any]) -> Any:
    """Where answers come from: a bar a condition in three parts, with the interval of the first.

    Args:
        counts: answers that follow the passage, keep to memory, and do neither, by condition.
        intervals: of the first share, by condition.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 1.2 + 0.45 * len(counts)))
    for row, (name, parts) in enumerate(counts.items()):
        left = 0.0
        for part, (kind, color) in zip(parts, KINDS, strict=True):
            share = part / sum(parts)
            ax.barh(row, share, 0.6, left=left, color=color, label=None if row else kind)
            left += share
        each = intervals[name]
        ax.plot([each.low, each.high], [row, row], color="black", linewidth=2.2)
        ax.plot(each.value, row, color="black", marker="o", markersize=5)
    ax.set_yticks(range(len(counts)), list(counts))
    ax.set(xlabel="share of the answers; black: 95% interval of the blue share", xlim=(0, 1))
    ax.invert_yaxis()
    ax.grid(axis="y")
    ax.legend(fontsize=9, ncol=3, loc="lower center", bbox_to_anchor=(0.45, 1.0))
    return fig


def by_condition(intervals: Mapping[str, Any], base: Any = None, xlabel: str = "") -> Any:
    """A share with its interval, a row a condition; the band of `base` behind them."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 1.0 + 0.4 * len(intervals)))
    if base is not None:
        ax.axvspan(base.low, base.high, color="#dddddd", label="without a passage")
        ax.axvline(base.value, color="black", linestyle="--", linewidth=1)
    for row, (_, each) in enumerate(intervals.items()):
        ax.plot([each.low, each.high], [row, row], color=plots.BLUE, linewidth=2.4, alpha=0.6)
        ax.plot(each.value, row, color=plots.BLUE, marker="o")
    ax.set_yticks(range(len(intervals)), list(intervals))
    ax.set(xlabel=xlabel, xlim=(-0.03, 1.03), ylim=(len(intervals) - 0.5, -0.5))
    if base is not None:
        ax.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return fig
