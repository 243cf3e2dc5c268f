"""Drawings and plots of the lesson on the serving engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots
from llm_serve.engine.engine import Step

LOOKS = ((plots.BLUE, "o"), (plots.RED, "D"), (plots.GREEN, "s"), (plots.ORANGE, "^"))
GREY = "#BBBBBB"


def engine() -> plots.Drawing:
    """A step of the engine: who waits, who is chosen, what is computed, where keys and values lie."""
    draw = plots.Drawing(5.1, 3.5, "one step of the engine")
    draw.box("waiting", 0.0, 1.2, text="waiting", shape="requests", width=0.9)
    draw.box("scheduler", 1.25, 1.2, text="scheduler", shape="budget of tokens", look="step", width=1.1)
    draw.box("batch", 2.6, 1.2, text="flat batch", shape="tokens", width=0.9)
    draw.box("model", 3.9, 1.2, text="model", shape="every token alone", look="weight", width=1.15)
    draw.box("tokens", 2.6, 0.0, text="a new token each", shape="requests", width=1.1)
    draw.box("whole", 3.95, 0.0, text="whole answers", shape="leave", width=1.0)
    draw.box("pool", 1.25, 2.5, text="block pool", shape="who holds what", look="step", width=1.1)
    draw.box("cache", 2.6, 2.5, text="keys, values", shape="blocks, P", look="loss", width=0.95)
    draw.chain("waiting", "scheduler", "batch", "model", "tokens", "scheduler").arrow("tokens", "whole")
    draw.arrow("scheduler", "pool", text="takes, frees", above=False)
    draw.arrow("pool", "cache", text="tables")
    draw.arrow("model", "cache", text="attention", dashed=True, above=False)
    return draw


def padded(batches: Sequence[Sequence[tuple[int, int]]]) -> Any:
    """What each row of a padded batch computes at each of its positions.

    Args:
        batches: of each request its prompt's tokens and the tokens it writes.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    names = ("padding", "prompt", "writing", "waits for the longest")
    colors = ("#EEEEEE", plots.SKY, plots.ORANGE, GREY)
    widths = [max(p for p, _ in batch) + max(n for _, n in batch) - 1 for batch in batches]
    fig, axes = plt.subplots(1, len(batches), figsize=(7, 2.4), width_ratios=widths, squeeze=False)
    first = 0
    for ax, batch, width in zip(axes[0], batches, widths, strict=True):
        longest = max(p for p, _ in batch)
        grid = np.zeros((len(batch), width))
        for row, (prompt, new) in enumerate(batch):
            grid[row, longest - prompt : longest] = 1
            grid[row, longest : longest + new - 1] = 2
            grid[row, longest + new - 1 :] = 3
        ax.imshow(grid, cmap=ListedColormap(list(colors)), vmin=0, vmax=3, aspect="auto", interpolation="nearest")
        ax.set_yticks(range(len(batch)), [f"request {first + row}" for row in range(len(batch))])
        ax.set_xlabel("position of the batch")
        ax.set_yticks(np.arange(len(batch) - 1) + 0.5, minor=True)
        ax.grid(False)
        ax.grid(which="minor", axis="y", color="white", linewidth=3)
        ax.tick_params(which="minor", length=0)
        first += len(batch)
    parts = [Patch(facecolor=color, label=name) for color, name in zip(colors, names, strict=True)]
    fig.legend(handles=parts, loc="outside upper center", ncols=4, fontsize=9)
    return fig


def timelines(logs: Mapping[str, Sequence[Step]], idle: Mapping[str, Mapping[int, int]]) -> Any:
    """Who was in which step, a bar a request, from the log of an engine.

    Args:
        logs: by name.
        idle: by name, for some requests the number of steps until which their row stays taken.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    fig, axes = plt.subplots(len(logs), 1, figsize=(7, 2.1 * len(logs) + 0.4), sharex=True, squeeze=False)
    for ax, (name, log) in zip(axes[:, 0], logs.items(), strict=True):
        seen: dict[int, int] = {}
        for place, step in enumerate(log):
            for number, _, count, _ in step.tokens:
                reads = count > 1 or number not in seen
                color, hatch = (plots.BLUE, "////") if reads else (plots.ORANGE, "")
                bar = {"facecolors": color, "edgecolor": "white", "linewidth": 0.6, "hatch": hatch}
                ax.broken_barh([(place, 1)], (number - 0.4, 0.8), **bar)
                seen[number] = place + 1
        for number, end in idle.get(name, {}).items():
            ax.broken_barh([(seen[number], end - seen[number])], (number - 0.4, 0.8), facecolors="#DDDDDD")
        ax.set(ylabel="request", title=name, ylim=(max(seen) + 0.6, -0.6), yticks=sorted(seen))
        ax.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel("step of the engine")
    parts = [
        Patch(facecolor=plots.BLUE, edgecolor="white", hatch="////", label="reads its prompt"),
        Patch(facecolor=plots.ORANGE, label="writes a token"), Patch(facecolor="#DDDDDD", label="its row waits"),
    ]  # fmt: skip
    fig.legend(handles=parts if idle else parts[:2], loc="outside upper center", ncols=3, fontsize=9)
    return fig


def block_tables(tables: Mapping[str, Sequence[int]], lengths: Mapping[str, int], size: int, blocks: int) -> Any:
    """The memory as blocks, each with the positions it holds, and the table of each request.

    Args:
        tables: by the request's name, its blocks in order.
        lengths: tokens that each has in the cache.
        size: positions in a block.
        blocks: how many the memory has.
    """
    draw = plots.Drawing(0.85 * blocks + 0.35, 2.85, f"tables of blocks, {size} positions each")
    looks = ("data", "weight", "loss")
    holds: dict[int, str] = {}
    look: dict[int, str] = {}
    for row, (name, table) in enumerate(tables.items()):
        for place, block in enumerate(table):
            last = min((place + 1) * size, lengths[name]) - 1
            own = f"{name}: {place * size}-{last}"
            holds[block] = f"{holds[block]}\n{own}" if block in holds else own
            look[block] = "step" if block in look else looks[row % 3]
    for block in range(blocks):
        draw.box(
            f"block {block}", 0.1 + 0.85 * block, 1.75, text=f"block {block}\n{holds.get(block, 'free')}",
            look=look.get(block, "gone"), width=0.76, height=0.9 if "\n" in holds.get(block, "") else 0.75,
        )  # fmt: skip
    for row, (name, table) in enumerate(tables.items()):
        text = f"{name}: {lengths[name]} tokens\ntable {list(table)}"
        column = 0.35 + 1.75 * row
        draw.box(name, column, 0.1, text=text, look=looks[row % 3], width=1.25, height=0.75)
        for block in table:
            draw.arrow(name, f"block {block}")
    return draw


def waste(sizes: Sequence[int], predicted: Sequence[float], counted: Sequence[float], reserved: float) -> Any:
    """Places that hold nothing, for each running request, by the size of a block.

    Args:
        sizes: positions of a block.
        predicted, counted: of each size, in tokens.
        reserved: where each request has room for the longest.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.1))
    ax.plot(sizes, predicted, color=plots.BLUE, label="(P - 1) / 2")
    ax.plot(sizes, counted, "o", color=plots.RED, markersize=7, label="counted in the log")
    ax.axhline(reserved, color=plots.BLACK, linestyle="--", label="a row for the longest")
    ax.set(xscale="log", xlabel="positions in a block, P", ylabel="empty places\na request", ylim=(0, None))
    ax.set_xticks(list(sizes), [str(size) for size in sizes])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return fig


def gaps(runs: Mapping[str, Mapping[int, Sequence[float]]], arrival: Mapping[str, float]) -> Any:
    """When each token was written, a row of marks a request; a hole is a wait.

    Args:
        runs: by name, for each request the times of its tokens, in seconds.
        arrival: of the long prompt, by name.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(runs), 1, figsize=(7, 1.7 * len(runs) + 0.3), sharex=True, squeeze=False)
    for ax, (name, times) in zip(axes[:, 0], runs.items(), strict=True):
        for number, seconds in times.items():
            long = number == max(times)
            since = np.array(seconds) - arrival[name]
            ax.plot(since, [number] * len(since), "|", color=plots.RED if long else plots.BLUE, markersize=9)
        ax.axvline(0, color=plots.BLACK, linestyle="--", linewidth=1.2)
        ax.set(title=name, ylabel="request", ylim=(max(times) + 0.6, -0.6), yticks=sorted(times))
        ax.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel("seconds since the long prompt came (dashed)")
    return fig


def budgets(tokens: Sequence[int], longest_gap: Sequence[float], first_token: Sequence[float]) -> Any:
    """What a step's budget does to those who write and to the one who reads.

    Args:
        tokens: the budgets.
        longest_gap: between two tokens of the others, in seconds.
        first_token: of the long prompt, in seconds after it came.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.1))
    for values, name, (color, marker) in (
        (first_token, "first token of the long prompt", LOOKS[1]),
        (longest_gap, "longest gap of the others", LOOKS[0]),
    ):
        ax.plot(tokens, [1e3 * value for value in values], color=color, marker=marker, label=name)
    ax.set(xscale="log", yscale="log", xlabel="max_num_batched_tokens", ylabel="milliseconds")
    ax.set_xticks(list(tokens), [str(each) for each in tokens])
    low, high = ax.get_ylim()
    marks = [mark for mark in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= mark <= high]
    ax.set_yticks(marks, [f"{mark:,}" for mark in marks])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return fig
