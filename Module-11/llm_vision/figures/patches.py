"""Drawings and plots of the lesson on how a picture becomes tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.RED, "D"), (plots.GREEN, "s"), (plots.ORANGE, "^"))


def way() -> plots.Drawing:
    """From a picture to tokens, with shapes."""
    draw = plots.Drawing(6.4, 3.2, "from a picture to tokens: H pixels a side, patches of p, P = (H / p)² of them")
    draw.box("picture", 0.0, 0.2, text="picture", shape="3, H, H", width=0.8)
    draw.box("patches", 1.35, 0.2, text="patches", shape="P, 3p²", width=0.85)
    draw.box("linear", 2.7, 0.2, text="one linear layer", shape="C, 3p²", look="weight", width=1.1)
    draw.box("tokens", 4.1, 0.2, text="patch tokens", shape="P, C", width=0.95)
    draw.box("class", 5.35, 0.2, text="class token", shape="1, C", look="weight", width=0.9)
    draw.box("sum", 4.7, 1.2, text="join, add", look="step", width=0.8)
    draw.box("positions", 5.45, 1.95, text="positions", shape="P + 1, C", look="weight", width=0.85)
    draw.box("blocks", 3.0, 1.95, text="L blocks: attention, MLP", shape="N = P + 1", look="weight", width=1.6)
    draw.box("out", 0.9, 1.95, text="tokens: one for each\npatch, one for all", shape="N, C", width=1.45, height=0.8)
    draw.chain("picture", "patches", "linear", "tokens", "sum", "blocks", "out")
    draw.arrow("class", "sum").arrow("positions", "sum")
    return draw


def two_towers() -> plots.Drawing:
    """Contrastive training: two towers, one table of cosines."""
    draw = plots.Drawing(6.3, 2.6, "contrastive training: B pictures, B captions, B² cosines")
    draw.box("pictures", 0.0, 0.1, shape="B, 3, H, H", width=0.85)
    draw.box("captions", 0.0, 1.4, shape="B, T", width=0.85)
    draw.box("vit", 1.4, 0.1, text="ViT, projection", look="weight", width=1.1)
    draw.box("gpt", 1.4, 1.4, text="GPT, projection", look="weight", width=1.1)
    draw.box("one", 2.75, 0.1, text="vectors", shape="B, d", width=0.75)
    draw.box("two", 2.75, 1.4, text="vectors", shape="B, d", width=0.75)
    draw.box("table", 4.0, 0.75, text="cosine of each\nwith each", shape="B, B", look="step", width=1.1, height=0.8)
    draw.box("loss", 5.3, 0.75, text="diagonal up,\nthe rest down", look="loss", width=1.0, height=0.8)
    draw.chain("pictures", "vit", "one", "table", "loss").chain("captions", "gpt", "two", "table")
    return draw


def cut(picture: np.ndarray, patch_size: int) -> Any:
    """A picture with the lines along which it is cut, and its patches in the order of the tokens."""
    import matplotlib.pyplot as plt

    side = picture.shape[0] // patch_size
    fig = plt.figure(figsize=(7, 2.9))
    halves: Any = fig.subfigures(1, 2)
    left, right = halves
    ax = left.subplots()
    ax.imshow(picture)
    ax.set(title=f"{picture.shape[0]} x {picture.shape[1]} pixels", xticks=[], yticks=[])
    for line in range(1, side):
        ax.axhline(line * patch_size - 0.5, color="white", linewidth=1)
        ax.axvline(line * patch_size - 0.5, color="white", linewidth=1)
    for number, small in enumerate(right.subplots(side, side).flat):
        y, x = number // side * patch_size, number % side * patch_size
        small.imshow(picture[y : y + patch_size, x : x + patch_size], vmin=0, vmax=255)
        small.axis("off")
        small.set_title(str(number), fontsize=8, pad=1, loc="center")
    return fig


def pages(by_name: Mapping[str, np.ndarray], lines: Sequence[int]) -> Any:
    """Pictures side by side, each with the lines of its patches."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(by_name), figsize=(7, 7 / len(by_name) + 0.2))
    for ax, (name, picture), step in zip(axes, by_name.items(), lines, strict=True):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=10)
        for line in range(step, picture.shape[0], step):
            ax.axhline(line - 0.5, color=plots.ORANGE, linewidth=1)
            ax.axvline(line - 0.5, color=plots.ORANGE, linewidth=1)
    return fig


def costs(
    sizes: Sequence[int], flops: Sequence[float], counted: Sequence[float], seconds: Sequence[Any],
    held: Sequence[float], kept: Sequence[float],
) -> Any:  # fmt: skip
    """By pixels of a patch: FLOPs and bytes by formula and counted, and seconds beside what the FLOPs would say.

    Args:
        sizes: p of each value.
        flops, counted: of a picture, forward.
        seconds: `llm_precision.meters.Seconds`, of a batch.
        held, kept: bytes for the backward pass by formula, and counted.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(7, 2.8))
    axes[0].plot(sizes, np.array(flops) / 1e6, color=plots.BLUE, label="formula")
    axes[0].plot(sizes, np.array(counted) / 1e6, "o", color=plots.RED, label="counted")
    axes[0].set_title("million FLOPs")
    axes[1].plot(sizes, np.array(held) / 1e3, color=plots.BLUE, label="formula")
    axes[1].plot(sizes, np.array(kept) / 1e3, "o", color=plots.RED, label="counted")
    axes[1].set_title("kB for backward")
    middle = np.array([each.median for each in seconds]) * 1e3
    spread = [middle - [each.low * 1e3 for each in seconds], [each.high * 1e3 for each in seconds] - middle]
    scale = middle[0] / flops[0]
    axes[2].plot(sizes, [each * scale for each in flops], color=plots.BLUE, label="as FLOPs")
    axes[2].errorbar(sizes, middle, yerr=spread, fmt="o", color=plots.RED, capsize=3, label="measured")
    axes[2].set_title("milliseconds")
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set_xticks(sizes, [str(each) for each in sizes])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
        ax.set_xlabel("pixels of a patch, p")
        ax.legend(fontsize=8)
    return fig


def reading(curves: Mapping[str, Mapping[int, Sequence[float]]]) -> Any:
    """Digits read against pixels of a patch: a point for each seed, a line through their means."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.4))
    for (name, by_size), (color, marker) in zip(curves.items(), LOOKS, strict=False):
        sizes = list(by_size)
        ax.plot(sizes, [float(np.mean(by_size[size])) for size in sizes], color=color, label=name)
        for size in sizes:
            ax.plot([size] * len(by_size[size]), by_size[size], marker, color=color, alpha=0.7)
    ax.axhline(0.1, color="black", linestyle="--", linewidth=1, label="guessing")
    ax.set_xscale("log", base=2)
    every = sorted({size for by_size in curves.values() for size in by_size})
    ax.set_xticks(every, [str(size) for size in every])
    ax.set(xlabel="pixels of a patch, p", ylabel="digits read", ylim=(0, 1.05))
    ax.legend(fontsize=9)
    return fig


def by_side(curves: Mapping[str, Mapping[int, float]], trained: int) -> Any:
    """Places named right against the side of the picture, a line for each way to come by positions."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, values), (color, marker) in zip(curves.items(), LOOKS, strict=False):
        ax.plot(list(values), list(values.values()), color=color, marker=marker, label=name)
    ax.axvline(trained, color="black", linestyle=":", linewidth=1)
    ax.axhline(0.2, color="black", linestyle="--", linewidth=1, label="guessing")
    sides = sorted({side for values in curves.values() for side in values})
    ax.set(xlabel="pixels of the picture's side (dotted: as trained)", ylabel="places named right", ylim=(0, 1.05))
    ax.set_xticks(sides)
    ax.legend(fontsize=9, loc="center", bbox_to_anchor=(0.52, 0.45))
    return fig


def tables(by_name: Mapping[str, Any], rows: Sequence[str], columns: Sequence[str], x: str, y: str) -> Any:
    """Matrices side by side, with the same colours."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(by_name), figsize=(7, 3.2), sharey=True)
    image: Any = None
    for ax, (name, values) in zip(axes, by_name.items(), strict=True):
        image = plots.heatmap(ax, values, rows, columns)
        ax.set_title(name)
        ax.set_xlabel(x)
        ax.tick_params(axis="x", rotation=45)
    axes[0].set_ylabel(y)
    fig.colorbar(image, ax=axes.tolist(), shrink=0.9)
    return fig
