"""Drawings and plots of the lesson on servers, engines and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from course import plots

LOOKS = ((plots.BLUE, "o", "-"), (plots.GREEN, "s", "--"), (plots.RED, "D", "-."), (plots.ORANGE, "^", ":"))


def server() -> plots.Drawing:
    """From a caller to the model and back: two threads, and what goes between them."""
    draw = plots.Drawing(5.75, 2.5, "one process, two threads: one talks, the other computes")
    draw.box("caller", 0.0, 0.7, text="callers\nHTTP", width=0.85, height=0.85)
    draw.box("app", 1.5, 0.2, text="read, check\ntokenize", look="step", width=1.05, height=0.8)
    draw.box("events", 1.5, 1.3, text="text, events\ncounts", look="step", width=1.05, height=0.8)
    draw.box("queue", 3.0, 0.2, text="orders", shape="submit, cancel", width=1.15, height=0.8)
    draw.box("deltas", 3.0, 1.3, text="deltas", shape="tokens of a step", width=1.15, height=0.8)
    draw.box("engine", 4.55, 0.7, text="engine\na step at\na time", look="weight", width=0.95, height=1.0)
    draw.chain("caller", "app", "queue", "engine", "deltas", "events", "caller")
    draw.group(["app", "events"], "asyncio")
    draw.group(["engine"], "thread")
    return draw


def placements() -> plots.Drawing:
    """Two GPUs: a copy on each, or one copy over both."""
    draw = plots.Drawing(5.6, 2.5, "two GPUs: two copies beside each other, or one copy over both")
    for number, column in enumerate((0.2, 1.5)):
        draw.box(f"w{number}", column, 0.2, text="all weights", look="weight", width=1.0)
        draw.box(f"c{number}", column, 1.15, text="cache\nwhat is left", width=1.0, height=0.8)
        draw.group([f"w{number}", f"c{number}"], f"GPU {number}")
    for number, column in enumerate((3.2, 4.5)):
        draw.box(f"h{number}", column, 0.2, text="half of each\nmatrix", look="weight", width=1.0)
        draw.box(f"k{number}", column, 1.15, text="cache\nof half the heads", width=1.0, height=0.8)
        draw.group([f"h{number}", f"k{number}"], f"GPU {number}")
    draw.arrow("h0", "h1").arrow("h1", "h0")
    draw.note(0.85, 1.85, "each its own requests")
    draw.note(3.85, 1.85, "every request on both")
    return draw


def loads(found: Mapping[str, Sequence[tuple[float, float]]], title: str, best: float | None = None) -> Any:
    """Latency against throughput: a line a server, a point a rate.

    Args:
        found: by server, (tokens a second, seconds to the first token) of each rate, in the order of the rates.
        title: above.
        best: tokens a second that were predicted as the most.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, points), (color, marker, line) in zip(found.items(), LOOKS, strict=False):
        x, y = zip(*points, strict=True)
        ax.plot(x, y, color=color, marker=marker, linestyle=line, label=name)
    if best is not None:
        ax.axvline(best, color="black", linestyle=":", linewidth=1.2)
        ax.text(best, ax.get_ylim()[1], " most, predicted", fontsize=9, va="top", ha="right", rotation=90)
    ax.set(xlabel="tokens written a second", ylabel="median s to the first token", ylim=(0, None), xlim=(0, None))
    ax.set_title(title)
    if len(found) > 1:
        ax.legend(fontsize=9)
    return fig


def batches(curves: Mapping[str, Sequence[tuple[int, float, float]]], ends: Mapping[str, int]) -> Any:
    """What a copy writes and what one caller sees of it, by the batch.

    Args:
        curves: by name, (batch, tokens a second of all, tokens a second of one).
        ends: the largest batch that fits.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2))
    for (name, rows), (color, marker, line) in zip(curves.items(), LOOKS, strict=False):
        fits = [row for row in rows if row[0] <= ends[name]]
        for ax, column in ((left, 1), (right, 2)):
            ax.plot([row[0] for row in rows], [row[column] for row in rows], color=color, linestyle=":", linewidth=1)
            ax.plot([row[0] for row in fits], [row[column] for row in fits], color=color, linestyle=line, label=name)
            ax.plot([fits[-1][0]], [fits[-1][column]], color=color, marker=marker)
    left.set(xscale="log", xlabel="requests at once", ylabel="tokens/s of all", ylim=(0, None))
    right.set(xscale="log", xlabel="requests at once", ylabel="tokens/s of one", ylim=(0, None))
    for ax in (left, right):
        ax.set_xticks([1, 10, 100], ["1", "10", "100"])
    left.legend(fontsize=8)
    return fig


def chart() -> plots.Drawing:
    """What to serve with."""
    draw = plots.Drawing(5.2, 4.75, "yes: to the right; no: down")
    rows = (
        ("a laptop, one user?", "llama.cpp: a file of\nfour bits, any CPU"),
        ("your own rules inside\nthe engine?", "this one, or vLLM's\nplugins: read first"),
        ("does one copy fit on one\nGPU, with its caches?", "a copy a GPU, a balancer\nbefore them"),
        ("does it fit on all\nGPUs of the machine?", "one copy over them\n(tensor parallel)"),
    )
    for place, (question, answer) in enumerate(rows):
        draw.box(question, 0.9, 0.15 + 0.95 * place, look="step", width=1.75, height=0.66)
        draw.box(answer, 3.6, 0.15 + 0.95 * place, look="weight", width=2.0, height=0.66)
        draw.arrow(question, answer, "yes")
    for (one, _), (other, _) in pairwise(rows):
        draw.arrow(one, other, "no")
    draw.box("less", 0.9, 3.95, text="fewer bits, or\nmore machines", look="weight", width=1.75, height=0.6)
    draw.arrow(rows[-1][0], "less", "no")
    return draw
