"""Drawings and plots of the lesson on finding the passage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.RED, "D"), (plots.GREEN, "s"), (plots.ORANGE, "^"))


def two_roads() -> plots.Drawing:
    """From documents and a question to one ranking, by words and by vectors."""
    draw = plots.Drawing(6.0, 3.0, "two roads from a question to its passage")
    draw.box("documents", 0.0, 1.0, text="documents", width=0.85)
    draw.box("passages", 1.15, 1.0, text="passages", shape="n texts", width=0.85)
    draw.box("counts", 2.4, 0.0, text="words counted", shape="word: passages", look="step", width=1.2)
    draw.box("bm25", 5.0, 0.0, text="n scores", shape="BM25", look="step", width=0.9)
    draw.box("question", 2.4, 1.0, text="a question", look="loss", width=0.85)
    draw.box("one", 3.75, 1.0, text="encoder", shape="dim", look="weight", width=0.8)
    draw.box("encoder", 2.4, 2.0, text="the same encoder", look="weight", width=1.2)
    draw.box("vectors", 3.75, 2.0, text="vectors", shape="n, dim", width=0.85)
    draw.box("cosines", 5.0, 2.0, text="n cosines", look="step", width=0.9)
    draw.box("fused", 5.0, 1.0, text="ranks fused", look="loss", width=0.9)
    draw.chain("documents", "passages", "counts", "bm25", "fused").chain("question", "one", "cosines", "fused")
    draw.chain("passages", "encoder", "vectors", "cosines").arrow("question", "bm25")
    return draw


def passages(text: str, spans: Sequence[tuple[int, int]], ends: Sequence[int]) -> Any:
    """Where the passages of a text lie, a bar for each, and where its sentences and paragraphs end.

    Args:
        text: the document.
        spans: start and stop of each passage.
        ends: places where a sentence ends.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 0.9 + 0.42 * len(spans)))
    for row, (start, stop) in enumerate(spans):
        ax.barh(row, stop - start, left=start, height=0.62, color=plots.COLORS[row % 4], alpha=0.55)
        first = " ".join(text[start:stop].split())[:15]
        ax.text(start + 3, row, f"{first} …", va="center", fontsize=8.5)
    for place in ends:
        ax.axvline(place, color="#777777", linestyle=":", linewidth=1)
    ax.set(xlabel="character of the document", xlim=(0, len(text)), yticks=range(len(spans)))
    ax.set(ylabel="passage", title="dotted: a sentence ends here")
    ax.invert_yaxis()
    ax.grid(False)
    return fig


def saturation(curves: Mapping[str, Sequence[float]], counts: Sequence[float]) -> Any:
    """What a word adds to a score by how often it stands in the passage, a curve for each setting."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.9))
    for (name, values), (color, marker) in zip(curves.items(), LOOKS, strict=False):
        ax.plot(counts, values, color=color, marker=marker, markersize=4, label=name)
    ax.set(xlabel="times that the word stands in the passage", ylabel="factor on its idf", ylim=(0, None))
    ax.legend(fontsize=9)
    return fig


def towers() -> plots.Drawing:
    """A batch of two pairs: every question meets every function, and the diagonal is right."""
    draw = plots.Drawing(5.7, 2.5, "InfoNCE on a batch of B = 2 pairs")
    draw.box("questions", 0.0, 0.0, text="2 questions", width=0.9)
    draw.box("answers", 0.0, 1.4, text="2 functions", width=0.9)
    draw.box("encoder", 1.3, 0.7, text="one encoder", look="weight", width=0.95)
    draw.box("u", 2.5, 0.0, text="u", shape="B, dim", width=0.8)
    draw.box("v", 2.5, 1.4, text="v", shape="B, dim", width=0.8)
    draw.box("00", 3.75, 0.35, text="u0·v0 right", look="loss", width=0.8)
    draw.box("01", 4.7, 0.35, text="u0·v1", look="step", width=0.8)
    draw.box("10", 3.75, 1.1, text="u1·v0", look="step", width=0.8)
    draw.box("11", 4.7, 1.1, text="u1·v1 right", look="loss", width=0.8)
    draw.chain("questions", "encoder", "u").chain("answers", "encoder", "v").arrow("u", "00").arrow("v", "10")
    draw.group(("00", "01", "10", "11"), "cosines / t: a softmax a row")
    return draw


def lists(points: Any, centroids: Any, list_of: Any, query: Any, probed: Sequence[int], true: Sequence[int]) -> Any:
    """Vectors of two numbers in the lists of their centroids, a query, the lists that it reads, its true nearest.

    Args:
        points: (n, 2).
        centroids: (nlist, 2).
        list_of: the list of each point.
        query: two numbers.
        probed: lists that are read.
        true: the nearest points.
    """
    import matplotlib.pyplot as plt

    points, centroids, list_of = (np.asarray(each) for each in (points, centroids, list_of))
    fig, ax = plt.subplots(figsize=(7, 3.6))
    read = np.isin(list_of, list(probed))
    near = points[list(true)]
    ax.scatter(points[~read, 0], points[~read, 1], s=9, color="#c4c4c4", label="not read")
    ax.scatter(points[read, 0], points[read, 1], s=11, color=plots.SKY, label="in the lists that are read")
    ax.scatter(near[:, 0], near[:, 1], s=60, facecolors="none", edgecolors=plots.RED, linewidths=1.4,
               label="the true nearest")  # fmt: skip
    ax.scatter(centroids[:, 0], centroids[:, 1], s=70, marker="X", color="black", label="centroids")
    ax.scatter(float(query[0]), float(query[1]), s=130, marker="*", color=plots.YELLOW, edgecolors="black",
               label="the query")  # fmt: skip
    middles = centroids[:, None] + np.zeros((1, 1, 2))
    grid_x, grid_y = np.meshgrid(np.linspace(*ax.get_xlim(), 300), np.linspace(*ax.get_ylim(), 300))
    apart = (grid_x[None] - middles[..., 0:1]) ** 2 + (grid_y[None] - middles[..., 1:2]) ** 2
    nearest = apart.argmin(0)
    for number in range(len(centroids)):
        ax.contour(grid_x, grid_y, nearest == number, levels=[0.5], colors="#888888", linewidths=0.7)
    ax.set(aspect="equal")
    ax.axis("off")
    ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def work(series: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """The share of the true nearest that is found, by the share of the vectors that is compared."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, points), (color, marker) in zip(series.items(), LOOKS, strict=False):
        ax.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=5, label=name)
    chance = np.geomspace(0.015, 1, 50)
    ax.plot(chance, chance, color="black", linestyle="--", linewidth=1, label="a random share of the vectors")
    ax.set(xlabel="share of the vectors that a query is compared with (logarithmic)", xscale="log")
    ax.set(ylabel="share of the true ten found", ylim=(0, 1.1), xticks=(0.01, 0.03, 0.1, 0.3, 1.0))
    ax.set_xticklabels(["1%", "3%", "10%", "30%", "100%"])
    ax.minorticks_off()
    ax.legend(fontsize=9, loc="upper left")
    return fig


def recalls(by_form: Mapping[str, Mapping[str, Any]]) -> Any:
    """Recall of each method with its interval: a row for each method, a colour for each form of the passages."""
    import matplotlib.pyplot as plt

    names = list(next(iter(by_form.values())))
    fig, ax = plt.subplots(figsize=(7, 0.9 + 0.42 * len(names)))
    for shift, ((form, found), (color, marker)) in enumerate(zip(by_form.items(), LOOKS, strict=False)):
        for row, name in enumerate(names):
            each, place = found[name], row + 0.22 * shift - 0.11
            ax.plot([each.low, each.high], [place, place], color=color, linewidth=2.4, alpha=0.6)
            ax.plot(each.value, place, color=color, marker=marker, linestyle="", label=None if row else form)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="recall@10, with the 95% interval of its bootstrap")
    ax.invert_yaxis()
    ax.legend(fontsize=9, loc="lower left")
    return fig


def gains(by_form: Mapping[str, Mapping[str, Any]]) -> Any:
    """The change of recall on the same questions with its interval, a row for each comparison."""
    fig = recalls(by_form)
    ax = fig.axes[0]
    ax.axvline(0.0, color="black", linestyle="--", linewidth=1)
    ax.set(xlabel="change of recall@10 on the same questions, 95% interval")
    ax.get_legend().set_loc("lower right")
    return fig
