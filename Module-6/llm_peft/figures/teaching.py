"""Drawings and plots of the lesson that teaches a real model a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLACK, "o"), (plots.BLUE, "s"), (plots.ORANGE, "^"))
SHOWN = {"\n": "\\n", "\t": "\\t", " ": "\u00b7"}  # letters that would not be seen
LETTER, GAP = 0.094, 0.1  # inches that a letter takes, and between two tokens
WIDTH = 6.9


def way() -> plots.Drawing:
    """From an example to a gradient of the adapter."""
    draw = plots.Drawing(5.7, 3.1, "from an example to the adapter; dashed: the way of the gradients")
    draw.box("example", 0.05, -0.05, text="messages", shape="a line of JSON", width=0.9)
    draw.box("text", 1.4, -0.05, text="text", shape="chat template", width=0.9)
    draw.box("ids", 2.75, -0.05, text="input_ids\nposition_ids", shape="1, 256", width=0.95, height=0.75)
    draw.box("labels", 2.75, 2.1, text="labels", shape="1, 256; answers only", width=1.25)
    draw.box("frozen", 4.2, -0.05, text="frozen model", shape="134.5M weights", look="gone", width=1.0)
    draw.box("adapter", 4.2, 0.75, text="A and B", shape="4.9M weights", look="weight", width=1.0)
    draw.box("loss", 4.2, 2.1, text="loss", shape="at the targets", look="loss", width=0.9)
    draw.group(["frozen", "adapter"])
    draw.chain("example", "text", "ids", "frozen")
    draw.arrow("text", "labels").arrow("labels", "loss").arrow("adapter", "loss", "logits", bend=-0.35, above=False)
    draw.arrow("loss", "adapter", bend=-0.35, dashed=True)
    return draw


def readers() -> plots.Drawing:
    """What is kept of a run, and who reads it."""
    draw = plots.Drawing(5.6, 2.7, "what a run leaves, and who reads it")
    draw.box("base", 0.15, -0.05, text="base model", shape="538 MB, as it was", look="gone", width=1.2)
    draw.box("ckpt", 0.15, 0.85, text="checkpoint", shape="adapter and states", look="weight", width=1.2)
    draw.box("adapter", 1.85, 0.85, text="adapter", shape="19.6 MB", look="weight", width=0.9)
    draw.box("merged", 1.85, -0.05, text="merged model", shape="538 MB", width=1.0)
    draw.box("same", 0.15, 1.75, text="the run goes on", look="step", width=1.1, height=0.45)
    draw.box("peft", 3.5, 1.1, text="peft", look="step", width=0.7, height=0.4)
    draw.box("chat", 3.5, 1.75, text="local-lora chat", look="step", width=1.0, height=0.4)
    draw.box("theirs", 4.35, -0.25, text="transformers", look="step", width=1.2, height=0.4)
    draw.box("gpt", 4.35, 0.35, text="our GPT", look="step", width=0.8, height=0.4)
    draw.arrow("ckpt", "adapter").arrow("adapter", "merged").arrow("base", "merged").arrow("ckpt", "same")
    draw.arrow("adapter", "peft").arrow("adapter", "chat").arrow("merged", "theirs").arrow("merged", "gpt")
    return draw


def marked_tokens(pieces: Sequence[str], learned: Sequence[bool]) -> Any:
    """The tokens of an example in lines; those that are learned are orange, in bold, and underlined.

    Args:
        pieces: each token's text.
        learned: whether it is a target.
    """
    import matplotlib.pyplot as plt

    places, x, line = [], 0.0, 0
    texts = ["".join(SHOWN.get(letter, letter) for letter in piece) for piece in pieces]
    for piece, text in zip(pieces, texts, strict=True):
        width = LETTER * len(text) + GAP
        if x + width > WIDTH:
            x, line = 0.0, line + 1
        places.append((x, line, width))
        x += width
        if piece.endswith("\n"):
            x, line = 0.0, line + 1
    lines = places[-1][1] + 1
    fig, ax = plt.subplots(figsize=(7, 0.28 * lines + 0.2))
    for (left, row, width), text, target in zip(places, texts, learned, strict=True):
        face, edge = ("#FBE8C6", plots.ORANGE) if target else ("#F2F2F2", "#BBBBBB")
        ax.add_patch(plt.Rectangle((left + 0.02, row - 0.4), width - 0.04, 0.8, facecolor=face, edgecolor=edge))
        weight = "bold" if target else "normal"
        color = "black" if target else "#555555"
        ax.text(left + width / 2, row, text, ha="center", va="center", fontsize=8.5, family="monospace",
                weight=weight, color=color)  # fmt: skip
        if target:
            ax.plot([left + 0.05, left + width - 0.05], [row + 0.33] * 2, color=plots.RED, linewidth=1.5)
    ax.set(xlim=(0, WIDTH), ylim=(lines - 0.4, -0.6))
    ax.axis("off")
    return fig


def lesson_learned(
    losses: Sequence[float], before: Mapping[str, float], after: Mapping[str, float], number: int
) -> Any:
    """A run's losses, and the shares of its answers before and after with two standard errors.

    Args:
        losses: nats a target, a step each.
        before, after: shares from 0 to 1 by what is counted.
        number: of questions.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1), width_ratios=[1, 1.35])
    left.plot(range(1, len(losses) + 1), losses, marker="o", markersize=4, color=plots.BLUE)
    left.set(xlabel="step", ylabel="loss, nats a target", ylim=(0, None))
    left.set_xticks(range(2, len(losses) + 1, 2))
    places = np.arange(len(before))
    for shares, shift, color, hatch, name in (
        (before, -0.19, plots.SKY, "", "before"), (after, 0.19, plots.ORANGE, "//", "after")
    ):  # fmt: skip
        values = np.array(list(shares.values()))
        errors = 2 * np.sqrt(values * (1 - values) / number)
        right.bar(places + shift, 100 * values, 0.36, color=color, hatch=hatch, edgecolor="#444444", label=name)
        right.errorbar(places + shift, 100 * values, 100 * errors, fmt="none", color="black", capsize=3, linewidth=1.2)
    right.set_xticks(places, list(before))
    right.set(ylabel=f"% of {number} answers", ylim=(0, 119), yticks=range(0, 101, 25))
    right.grid(axis="x", visible=False)
    right.legend(fontsize=9, ncols=2, loc="upper left")
    return fig


def side_by_side(rows: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> Any:
    """Three ways to teach the same task: right answers over the steps, and what other text costs more afterwards.

    Args:
        rows: of the record, a run each, with the way's name in "row".
        before: shares and bits per byte of the model as it was.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.3), width_ratios=[1.3, 1])
    ways = list(dict.fromkeys(row["row"] for row in rows))
    texts = list(before["bits_per_byte"])
    for number, (way, (color, marker)) in enumerate(zip(ways, LOOKS, strict=False)):
        runs = [row["points"] for row in rows if row["row"] == way]
        steps = [0, *(point["step"] for point in runs[0])]
        shares = 100 * np.array([[before["right"], *(point["right"] for point in run)] for run in runs])
        left.plot(steps, shares.mean(axis=0), color=color, marker=marker, label=way)
        left.fill_between(steps, shares.min(axis=0), shares.max(axis=0), color=color, alpha=0.2, linewidth=0)
        for place, text in enumerate(texts):
            cost = [run[-1]["bits_per_byte"][text] - before["bits_per_byte"][text] for run in runs]
            at = place + 0.22 * (number - (len(ways) - 1) / 2)
            right.plot([at] * len(cost), cost, marker, color=color, alpha=0.75)
            right.hlines(np.mean(cost), at - 0.09, at + 0.09, color=color)
    left.set(xlabel="step", ylabel="% of answers right", ylim=(-3, 103))
    left.legend(fontsize=9)
    right.axhline(0, color=plots.BLACK, linewidth=1)
    right.set_xticks(range(len(texts)), texts)
    right.set(xlim=(-0.5, len(texts) - 0.5), ylabel="bits per byte more than before")
    right.grid(axis="x", visible=False)
    return fig
