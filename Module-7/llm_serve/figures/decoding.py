"""Drawings and plots of the lesson on writing: who reads what, the batch's knee, what a caller waits, cache bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.RED, "o"), (plots.BLUE, "s"), (plots.GREEN, "^"), (plots.ORANGE, "D"))


def two_phases() -> plots.Drawing:
    """Prefill and decode beside each other: what crosses from memory to the arithmetic units in a step of each."""
    draw = plots.Drawing(5.9, 3.6, "what a step reads: reading a prompt, and writing a token")
    for top, name, tokens, times, cache in (
        (0.0, "prefill", "T tokens", "T rows", "writes T positions"),
        (2.0, "decode", "1 token", "1 row", "reads S, writes 1"),
    ):
        draw.box(f"{name} tokens", 0.15, top + 0.35, text=tokens, width=0.85)
        draw.box(f"{name} weights", 2.0, top - 0.05, text="all weights", shape="read once", look="weight", height=0.5)
        draw.box(f"{name} product", 3.2, top + 0.35, text="products", shape=times, look="step", width=0.9)
        draw.box(f"{name} logits", 4.65, top - 0.1, text="next token", width=0.85, height=0.5)
        draw.box(f"{name} cache", 4.65, top + 0.72, text="cache", shape=cache, look="loss", width=1.3)
        draw.arrow(f"{name} tokens", f"{name} product").arrow(f"{name} weights", f"{name} product")
        bend = 0.3 if name == "decode" else 0.0
        draw.arrow(f"{name} product", f"{name} logits").arrow(f"{name} product", f"{name} cache", bend=bend)
        draw.note(-0.1, top - 0.25, name)
    draw.arrow("decode cache", "decode product", bend=0.3, dashed=True)
    draw.arrow("decode logits", "decode tokens", bend=0.36, dashed=True)
    return draw


def two_caches() -> plots.Drawing:
    """A step of a cache that grows and of one whose room was taken once: what moves."""
    draw = plots.Drawing(5.2, 2.75, "one more position: a cache that grows, and one with room")
    draw.box("old", 0.45, 0.0, text="keys, values", shape="K, S, D", width=1.3)
    draw.box("new", 0.45, 0.8, text="new", shape="K, 1, D", look="loss", width=0.7)
    draw.box("joined", 3.5, 0.0, text="a new tensor", shape="K, S + 1, D", width=1.6)
    draw.arrow("old", "joined", "S positions are copied").arrow("new", "joined", "1 is written", above=False)
    draw.box("room", 0.45, 1.92, text="room, S used", shape="K, S, D", width=1.3)
    draw.box("place", 1.42, 1.92, text="next", look="loss", width=0.55)
    draw.box("free", 2.1, 1.92, text="free", look="gone", width=0.7)
    draw.box("new 2", 3.6, 1.92, text="new", shape="K, 1, D", look="loss", width=0.7)
    draw.arrow("new 2", "place", "1 is written, nothing is copied", bend=0.3)
    return draw


def seconds_by_length(lengths: Sequence[int], seconds: Mapping[str, Sequence[float]]) -> Any:
    """Milliseconds of a step over the tokens before it, a line for each way of keeping them."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.1))
    for (name, values), (color, marker) in zip(seconds.items(), LOOKS, strict=False):
        ax.plot(lengths, [1e3 * value for value in values], marker=marker, color=color, label=name)
    ax.set(xlabel="tokens before it", ylabel="ms for the next token", ylim=(0, None))
    ax.legend(fontsize=9)
    return fig


def intensities(rows: Sequence[int], lines: Mapping[str, Sequence[float]], ridges: Mapping[str, float]) -> Any:
    """FLOPs a byte of a layer over the rows that share its weights, and the ridges of machines as horizontal lines.

    Args:
        rows: tokens in a step.
        lines: FLOPs a byte by the format's name.
        ridges: of machines, by name.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.4))
    for (name, values), (color, _) in zip(lines.items(), LOOKS[1:], strict=False):
        ax.plot(rows, values, color=color, label=name)
    for name, ridge in ridges.items():
        ax.axhline(ridge, color=plots.BLACK, linestyle="--", linewidth=1)
        free = ridge > 20 * max(values[0] for values in lines.values())  # above the lines at the left, or below them
        ax.text(rows[0] * 1.2 if free else rows[-1] / 30, ridge * 1.1, name, fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="tokens in a step", ylabel="FLOPs a byte")
    ax.set_xlim(rows[0], rows[-1])
    ax.legend(fontsize=9, loc="lower right")
    return fig


def batch_sweep(
    batches: Sequence[int], seconds: Sequence[float], reading: float, row: float, knee: float,
    fitted: tuple[float, float],
) -> Any:  # fmt: skip
    """Milliseconds of a step, and tokens a second, over the batch: measured, and what the two ceilings say.

    Args:
        batches: tokens in a step.
        seconds: measured.
        reading: predicted seconds for the bytes.
        row: predicted seconds for one row's products.
        knee: the batch at which the two are predicted to be equal.
        fitted: seconds that all rows share and that each adds, of a line through what was measured.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4))
    over = np.geomspace(batches[0], batches[-1], 100)
    longer, both = np.maximum(reading, over * row), reading + over * row
    line = fitted[0] + fitted[1] * over
    left.plot(over, 1e3 * longer, color=plots.BLACK, label="the longer of the two")
    left.plot(over, 1e3 * both, "--", color=plots.BLUE, label="one after the other")
    left.plot(over, 1e3 * line, ":", color=plots.RED, label="fitted line")
    left.plot(batches, [1e3 * value for value in seconds], "o", color=plots.RED, label="measured")
    right.plot(over, over / longer, color=plots.BLACK)
    right.plot(over, over / both, "--", color=plots.BLUE)
    right.plot(over, over / line, ":", color=plots.RED)
    right.plot(batches, np.array(batches) / np.array(seconds), "o", color=plots.RED)
    for ax in (left, right):
        for place, style, color in ((knee, "--", plots.BLACK), (fitted[0] / max(fitted[1], 1e-9), ":", plots.RED)):
            if batches[0] <= place <= batches[-1]:
                ax.axvline(place, color=color, linestyle=style, linewidth=1)
        ax.set(xscale="log", xlabel="requests in a step")
        ax.set_xticks(list(batches), [str(batch) for batch in batches])
        ax.minorticks_off()
    left.set(ylabel="ms a step", ylim=(0, None))
    right.set(ylabel="tokens a second", ylim=(0, None))
    left.legend(fontsize=9)
    return fig


def timelines(panels: Mapping[str, Sequence[Sequence[float]]]) -> Any:
    """When each request's tokens came: a panel for each way of serving, a line for each request, a mark for each token.

    Args:
        panels: by name, for each request the seconds after the start at which its tokens came.
    """
    import matplotlib.pyplot as plt

    rows = max(map(len, panels.values()))
    fig, axes = plt.subplots(len(panels), 1, figsize=(7, (0.8 + 0.2 * rows) * len(panels)), sharex=True, squeeze=False)
    for ax, (name, requests) in zip(axes[:, 0], panels.items(), strict=True):
        for row, moments in enumerate(requests):
            ax.hlines(row, 0, moments[0], color=plots.SKY, linewidth=3)
            ax.plot(moments, [row] * len(moments), "|", color=plots.BLUE, markersize=8)
            ax.plot(moments[0], row, "o", color=plots.RED, markersize=5)
        ax.set(ylim=(len(requests) - 0.4, -0.6), ylabel="request")
        ax.set_yticks(range(len(requests)), [str(row + 1) for row in range(len(requests))])
        ax.set_title(name, fontsize=10)
        ax.grid(axis="y", visible=False)
    axes[-1, 0].set(xlabel="seconds after all were sent", xlim=(0, None))
    return fig


def latent_attention() -> plots.Drawing:
    """Attention on latents for one query: keys and values made of them, or the matrices moved to the query's side."""
    draw = plots.Drawing(5.8, 3.45, "one query of latent attention: expanded above, absorbed below")
    draw.box("q 1", 0.05, -0.1, text="query", shape="H, D", width=0.85)
    draw.box("c 1", 0.05, 0.8, text="latents, kept", shape="S, latent", look="loss", width=0.95)
    draw.box("kv 1", 2.3, 0.8, text="keys, values", shape="2, H, S, D", look="gone", width=1.1)
    draw.box("scores 1", 3.55, -0.1, text="attention", shape="H, S", look="step", width=0.9)
    draw.box("out 1", 4.85, -0.1, text="output", shape="H, D", width=0.8)
    draw.arrow("q 1", "scores 1").arrow("c 1", "kv 1", "U, V: S times", above=False).arrow("kv 1", "scores 1")
    draw.arrow("scores 1", "out 1")
    draw.box("q 2", 0.05, 1.75, text="query", shape="H, D", width=0.85)
    draw.box("c 2", 0.05, 2.6, text="latents, kept", shape="S, latent", look="loss", width=0.95)
    draw.box("q' 2", 2.0, 1.75, text="query", shape="H, latent", width=0.85)
    draw.box("scores 2", 3.35, 2.2, text="attention", shape="H, S", look="step", width=0.9)
    draw.box("out 2", 4.85, 2.2, text="output", shape="H, D", width=0.8)
    draw.arrow("q 2", "q' 2", "U: once").arrow("q' 2", "scores 2").arrow("c 2", "scores 2")
    draw.arrow("scores 2", "out 2", "V: once")
    return draw


def cache_bytes(found: Mapping[str, float], marked: Sequence[str] = ()) -> Any:
    """Kilobytes that a token keeps, a bar for each model.

    Args:
        found: bytes by the model's name.
        marked: models in another colour.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 0.42 * len(found) + 0.8))
    for row, (name, size) in enumerate(found.items()):
        ax.barh(row, size / 1e3, height=0.65, color=plots.ORANGE if name in marked else plots.BLUE)
        ax.text(size / 1e3 * 1.08, row, f"{size / 1e3:,.0f}", va="center", fontsize=9)
    ax.set_yticks(range(len(found)), list(found))
    ax.set(xscale="log", xlabel="kB a token", ylim=(len(found) - 0.5, -0.5), xlim=(10, max(found.values()) / 1e3 * 3))
    ax.grid(axis="y", visible=False)
    return fig
