"""Figures of this module's lessons: what fills a device, who holds which sum, what travels when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots
from llm_scale.budget import Budget


def memory_bars(budgets: Mapping[str, Budget], limit: float) -> Any:
    """GB of one device by what they are for, at the highest moment of a step; the line is what the device has.

    Args:
        budgets: by the bar's name.
        limit: GB.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 0.5 * len(budgets) + 1.1))
    colors = {"weights": plots.BLUE, "states": plots.ORANGE, "buckets": plots.GREEN, "the rest": plots.RED}
    for place, found in enumerate(budgets.values()):
        held = {name: 0 if found.host else value for name, value in found.held.items()}
        left = 0.0
        for name, value in {**held, "the rest": found.bytes - sum(held.values())}.items():
            ax.barh(place, value / 1e9, left=left, color=colors[name], alpha=0.75, height=0.65)
            left += value / 1e9
        ax.text(left + limit / 100, place, f"{left:.0f}", va="center", fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color, alpha=0.75) for color in colors.values()]
    ax.axvline(limit, color="black", linestyle="--", linewidth=1.2)
    ax.text(limit, -0.62, f" {limit:g} GB", fontsize=9, va="bottom")
    ax.set_yticks(range(len(budgets)), list(budgets))
    ax.set(ylim=(len(budgets) - 0.5, -0.7), xlim=(0, 1.12 * max(each.bytes for each in budgets.values()) / 1e9))
    ax.set_xlabel("GB on one device, at the highest moment of a step")
    ax.grid(axis="y", visible=False)
    ax.legend(handles, ["weights", "states", "buckets of gradients", "gradients, activations, logits"],
              fontsize=9, loc="lower right")  # fmt: skip
    return fig


def rounds(tables: Sequence[np.ndarray], titles: Sequence[str]) -> Any:
    """Who holds the sum of how many: a table a round, a row a rank, a column a part of the tensor.

    Args:
        tables: (ranks, parts), the number of ranks whose values are in that part.
        titles: of the tables.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(tables), figsize=(7, 7 / len(tables) + 0.7), sharey=True)
    ranks = tables[0].shape[0]
    for ax, table, title in zip(np.atleast_1d(axes), tables, titles, strict=True):
        ax.imshow(table, cmap="Blues", vmin=0, vmax=1.4 * ranks)
        for (row, column), number in np.ndenumerate(table):
            weight = "bold" if number == ranks else "normal"
            ax.text(column, row, f"{number:g}", ha="center", va="center", fontsize=10, fontweight=weight)
        ax.set_title(title, fontsize=10)
        ax.set_xticks(range(ranks), [f"{part}" for part in range(ranks)], fontsize=9)
        ax.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)], fontsize=9)
        ax.set_xlabel("part", fontsize=9)
        ax.grid(False)
    return fig


def lanes(work: Mapping[str, Sequence[tuple[str, float, float, str]]], marks: Mapping[str, float] | None = None) -> Any:
    """What happens when: a lane for each thing that works, a bar for each piece of its work.

    Args:
        work: by lane, (text, start, end, colour) of each piece, in seconds.
        marks: vertical lines, by their text.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 0.55 * len(work) + 1.0))
    for lane, pieces in enumerate(work.values()):
        for text, start, end, color in pieces:
            ax.barh(lane, 1e3 * (end - start), left=1e3 * start, color=color, alpha=0.6, height=0.7, edgecolor="white")
            ax.text(1e3 * (start + end) / 2, lane, text, ha="center", va="center", fontsize=8)
    for text, second in (marks or {}).items():
        ax.axvline(1e3 * second, color="black", linestyle="--", linewidth=1)
        ax.text(1e3 * second, -0.75, f" {text}", fontsize=8, va="center")
    ax.set_yticks(range(len(work)), list(work))
    ax.set(ylim=(len(work) - 0.4, -1.0 if marks else -0.6), xlim=(0, None), xlabel="ms")
    ax.grid(axis="y", visible=False)
    return fig


def stages(ranks: int = 4) -> Any:
    """Who holds what under data parallel and ZeRO's three stages: a bar is a whole tensor, filled where it is held."""
    import matplotlib.pyplot as plt

    names = ("weights", "gradients", "two moments")
    widths, colors = (1, 1, 2), (plots.BLUE, plots.GREEN, plots.ORANGE)
    sharded = {"data parallel": 0, "stage 1": 1, "stage 2": 2, "stage 3": 3}  # how many of them, from the right
    fig, axes = plt.subplots(1, 4, figsize=(7, 0.42 * ranks + 1.1), sharey=True)
    for ax, (title, number) in zip(axes, sharded.items(), strict=True):
        left = 0.0
        for place, (width, color) in enumerate(zip(widths, colors, strict=True)):
            for rank in range(ranks):
                ax.barh(rank, width, left=left, height=0.66, fill=False, edgecolor="#999999", linewidth=0.8)
                cut = place >= 3 - number
                begin, part = (left + width * rank / ranks, width / ranks) if cut else (left, width)
                ax.barh(rank, part, left=begin, height=0.66, color=color, alpha=0.75)
            left += width + 0.25
        ax.set_title(title, fontsize=10)
        ax.set(xticks=[], xlim=(-0.1, left), ylim=(ranks - 0.4, -0.6))
        ax.grid(False)
    axes[0].set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)], fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color, alpha=0.75) for color in colors]
    fig.legend(handles, names, ncols=3, fontsize=9, loc="outside lower center", frameon=False)
    return fig


def whole_units(events: Sequence[Any], held: int) -> Any:
    """When each unit's weights are whole on a rank, and the bytes of whole weights over time.

    Args:
        events: of a step, as `Zero3.events` has them.
        held: bytes of all weights, for the line that data parallel would draw.
    """
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(event.unit for event in events))
    begin, end = events[0].seconds, events[-1].seconds
    fig, (ax, below) = plt.subplots(
        2, 1, figsize=(7, 0.34 * len(names) + 2.6), sharex=True, height_ratios=(len(names), 4)
    )
    since: dict[str, float] = {}
    for event in events:
        lane, at = names.index(event.unit), 1e3 * (event.seconds - begin)
        if event.action == "gather":
            since[event.unit] = at
        elif event.action == "free" and event.unit in since:
            start = since.pop(event.unit)
            ax.barh(lane, at - start, left=start, height=0.7, color=plots.BLUE, alpha=0.6)
        elif event.action == "reduce":
            ax.plot(at, lane, "v", color=plots.RED, markersize=7)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.set(ylim=(len(names) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    times = [1e3 * (event.seconds - begin) for event in events]
    below.step(times, [event.bytes / 1e6 for event in events], where="post", color=plots.BLUE)
    below.axhline(held / 1e6, color="black", linestyle="--", linewidth=1)
    below.text(1e3 * (end - begin), held / 1e6, "all weights", fontsize=9, ha="right", va="bottom")
    below.set(xlabel="ms", ylabel="MB whole", ylim=(0, 1.25 * held / 1e6))
    return fig


def interrupted(record: Mapping[str, Any]) -> Any:
    """The losses of a run that lost a worker and a node on top of those of a run that lost nothing; and its progress.

    Args:
        record: of `Module-5/cluster/rehearse.py`.
    """
    import matplotlib.pyplot as plt

    fig, (ax, below) = plt.subplots(2, 1, figsize=(7, 5.4), height_ratios=(3, 2))
    ax.plot(range(1, len(record["whole"]) + 1), record["whole"], color=plots.ORANGE, linewidth=5, alpha=0.5,
            label="lost nothing")  # fmt: skip
    ax.plot(record["steps"], record["cut"], color=plots.BLUE, linewidth=1.2, label="lost a worker, then a node")
    below.plot([each["seconds"] for each in record["progress"]], [each["step"] for each in record["progress"]],
               color=plots.BLUE)  # fmt: skip
    lost = [event for event in record["events"] if event["what"].endswith(("killed", "lost"))]
    for place, event in enumerate(lost):
        ax.axvline(event["step"], color=plots.RED, linestyle="--", linewidth=1)
        below.axvline(event["seconds"], color=plots.RED, linestyle="--", linewidth=1)
        high = below.get_ylim()[1] * (1 - 0.14 * place)  # one below the other
        below.text(event["seconds"], high, f" {event['what']}", fontsize=9, va="top", color=plots.RED)
    ax.set(xlabel="step", ylabel="loss (nats)")
    ax.legend()
    below.set(xlabel="seconds since the job was submitted", ylabel="step", ylim=(0, None))
    return fig
