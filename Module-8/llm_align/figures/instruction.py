"""Drawings and plots of the lesson on instruction tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llm_peft.figures.teaching import SHOWN

from course import plots

READ, LEARNED = ("#F2F2F2", "#BBBBBB"), ("#FBE8C6", plots.ORANGE)  # face and edge of a token
Strip = Sequence[tuple[str, bool]]


def two_uses() -> plots.Drawing:
    """One conversation in training and in a chat: what is read, what is learned or written, where it stops."""
    draw = plots.Drawing(6.3, 3.3, "the same row in training (above) and in a chat (below)")
    draw.box("lq", 0.35, 0.1, text="no loss", look="gone", width=0.9, height=0.45)
    draw.box("la", 3.45, 0.1, text="loss", look="loss", width=0.9, height=0.45)
    draw.box("le", 4.85, 0.1, text="loss", look="loss", width=0.9, height=0.45)
    draw.box("q", 0.35, 1.1, text="user's turn", shape="read", width=1.1)
    draw.box("open", 1.9, 1.1, text="<|im_start|>\nassistant", shape="read", width=1.1, height=0.75)
    draw.box("a", 3.45, 1.1, text="answer", shape="read and learned", look="weight", width=1.1)
    draw.box("end", 4.85, 1.1, text="<|im_end|>", shape="learned", look="weight", width=1.0)
    draw.box("given", 1.1, 2.3, text="the prompt: given", look="data", width=2.0, height=0.5)
    draw.box("written", 3.45, 2.3, text="written by the model", look="weight", width=1.3, height=0.5)
    draw.box("stop", 4.9, 2.3, text="it stops", look="loss", width=0.8, height=0.5)
    draw.chain("q", "open", "a", "end").chain("given", "written", "stop")
    draw.arrow("q", "lq", dashed=True).arrow("a", "la").arrow("end", "le")
    draw.arrow("q", "given", dashed=True).arrow("open", "given", dashed=True)
    draw.arrow("a", "written", dashed=True).arrow("end", "stop", dashed=True)
    return draw


def strips(rows: Mapping[str, Strip]) -> Any:
    """One row of tokens for each way to make labels: orange and in bold is learned.

    Args:
        rows: by name, each token's text and whether it is a target.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 0.62 * len(rows) + 0.1))
    for line, (name, tokens) in enumerate(rows.items()):
        ax.text(0, line - 0.42, name, fontsize=9, va="center")
        x = 0.0
        for text, learned in tokens:
            shown = "".join(SHOWN.get(letter, letter) for letter in text)
            width, (face, edge) = 0.088 * len(shown) + 0.1, LEARNED if learned else READ
            ax.add_patch(plt.Rectangle((x, line - 0.2), width - 0.04, 0.42, facecolor=face, edgecolor=edge))
            ax.text(x + width / 2 - 0.02, line + 0.01, shown, ha="center", va="center", fontsize=8,
                    family="monospace", weight="bold" if learned else "normal")  # fmt: skip
            x += width
    ax.set(xlim=(-0.05, 6.95), ylim=(len(rows) - 0.6, -0.7))
    ax.axis("off")
    return fig


def endings(ways: Mapping[str, Mapping[str, Any]], end: Mapping[str, float]) -> Any:
    """For each way to train: how many answers are right and how many end, and what the end's probability is.

    Args:
        ways: by name, "right" and "ended" as intervals with `value`, `low` and `high`.
        end: by name, the mean probability of the end behind a right answer.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.3), width_ratios=[1.7, 1], sharey=True)
    places = np.arange(len(ways))[::-1]
    for what, shift, color, hatch in (("ended", 0.19, plots.BLUE, ""), ("right", -0.19, plots.ORANGE, "//")):
        found = [way[what] for way in ways.values()]
        values = 100 * np.array([each.value for each in found])
        # Near 0 and 1 the interval is not symmetric.
        errors = [values - [100 * each.low for each in found], [100 * each.high for each in found] - values]
        left.barh(places + shift, values, 0.36, color=color, hatch=hatch, edgecolor="#444444", label=what)
        left.errorbar(values, places + shift, xerr=errors, fmt="none", color="black", capsize=3, linewidth=1.2)
    left.set_yticks(places, list(ways))
    left.set(xlabel="% of answers", xlim=(0, 103))
    left.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
    left.grid(axis="y", visible=False)
    right.plot([end[name] for name in ways], places, "D", color=plots.RED)
    right.set(xscale="log", xlabel="probability of the end\nbehind a right answer", xlim=(None, 3))
    return fig


def losses_by_token(pieces: Sequence[str], losses: Sequence[float], learned: Sequence[bool]) -> Any:
    """What each token of a conversation costs a model; what would be learned is orange and hatched.

    Args:
        pieces: each token's text.
        losses: of each token, in nats.
        learned: whether it is a target.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.3))
    places, values, chosen = np.arange(len(pieces)), np.asarray(losses), np.asarray(learned)
    ax.bar(places[~chosen], values[~chosen], color=plots.SKY, label="prompt: read")
    ax.bar(places[chosen], values[chosen], color=plots.ORANGE, hatch="//", edgecolor="#444444", label="learned")
    texts = ["".join(SHOWN.get(letter, letter) for letter in piece) for piece in pieces]
    ax.set_xticks(places, texts, rotation=90, fontsize=7, family="monospace")
    ax.set(ylabel="loss, nats", xlim=(-0.7, len(pieces) - 0.3))
    ax.legend(fontsize=9)
    ax.grid(axis="x", visible=False)
    return fig
