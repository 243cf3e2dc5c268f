"""Drawings and plots of the lesson on operating a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.RED, "D"), (plots.GREEN, "s"), (plots.ORANGE, "^"))


def replay() -> plots.Drawing:
    """A stream whose replica dies in the middle."""
    draw = plots.Drawing(6.4, 3.0, "a stream goes on where its replica died")
    draw.box("r1", 0.6, 0.2, text="replica 1", look="gone", width=1.0)
    draw.box("w1", 2.5, 0.2, text="the cat sat", width=1.2)
    draw.box("dies", 4.2, 0.2, text="dies", look="loss", width=0.7)
    draw.box("r2", 0.6, 1.8, text="replica 2", look="weight", width=1.0)
    draw.box("again", 2.5, 1.8, text="the cat sat", look="gone", width=1.2)
    draw.box("rest", 4.2, 1.8, text="on the mat", width=1.2)
    draw.box("caller", 5.5, 1.0, text="caller", look="step", width=0.75)
    draw.chain("r1", "w1", "dies").chain("r2", "again", "rest")
    draw.arrow("rest", "caller")
    draw.note(2.5, 1.0, "compared with what the\ncaller has, not sent again")
    return draw


def rollout() -> plots.Drawing:
    """The way of a new model to its callers."""
    draw = plots.Drawing(6.4, 3.1, "a rollout: judged before any caller meets it, then one by one")
    draw.box("start", 0.25, 0.2, text="start one\nnew replica", look="step", width=1.1, height=0.7)
    draw.box("gate", 1.95, 0.2, text="gate", shape="old against new", look="loss", width=1.25, height=0.7)
    draw.box("add", 3.65, 0.2, text="it gets\ncallers", width=1.0, height=0.7)
    draw.box("drain", 5.15, 0.2, text="an old one\nends its answers", look="step", width=1.3, height=0.7)
    draw.box("stop", 1.95, 1.75, text="new one stopped,\nnothing changed", look="gone", width=1.5, height=0.7)
    draw.box("next", 4.45, 1.75, text="next: one more,\none fewer", look="step", width=1.3, height=0.7)
    draw.chain("start", "gate", "add", "drain", "next", "add")
    draw.arrow("gate", "stop", "no", dashed=True)
    return draw


def watching() -> plots.Drawing:
    """From a server's counters to somebody who wakes up."""
    draw = plots.Drawing(6.4, 1.6, "who watches")
    draw.box("server", 0.05, 0.4, text="/metrics", shape="counters", look="weight", width=0.95)
    draw.box("reads", 1.4, 0.4, text="read every\nfew seconds", look="step", width=1.05, height=0.7)
    draw.box("signal", 2.85, 0.4, text="signal", shape="rate, percentile", width=1.2)
    draw.box("alarm", 4.2, 0.4, text="above for\nso long?", look="loss", width=1.0, height=0.7)
    draw.box("person", 5.4, 0.4, text="somebody\nwakes up", look="step", width=0.95, height=0.7)
    draw.chain("server", "reads", "signal", "alarm", "person")
    return draw


def inside(samples: Mapping[str, Sequence[tuple[float, float]]], killed: float) -> Any:
    """Requests inside two replicas while callers come and one of them is killed."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.8))
    for (name, points), (color, _) in zip(samples.items(), LOOKS, strict=False):
        ax.plot(
            [at for at, _ in points], [count for _, count in points], color=color, label=name, drawstyle="steps-post"
        )
    ax.axvline(killed, color="black", linestyle="--", linewidth=1)
    ax.annotate("killed", (killed, ax.get_ylim()[1]), xytext=(4, -2), textcoords="offset points", va="top", fontsize=9)
    ax.set(xlabel="time (s)", ylabel="requests inside")
    ax.legend()
    return fig


def power(counts: Sequence[int], shares: Mapping[str, Sequence[float]]) -> Any:
    """How often each rule lets a model pass, by the number of questions."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, values), (color, marker) in zip(shares.items(), LOOKS, strict=False):
        ax.plot(counts, values, color=color, marker=marker, label=name)
    ax.set(xscale="log", xlabel="questions", ylabel="share of models that pass", ylim=(-0.03, 1.03))
    ax.set_xticks(list(counts), [str(each) for each in counts])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return fig


def fired(table: Mapping[str, Sequence[str]], alarms: Sequence[str]) -> Any:
    """Which alarm fired under which planted fault."""
    import matplotlib.pyplot as plt

    values = np.array([[float(name in found) for name in alarms] for found in table.values()])
    fig, ax = plt.subplots(figsize=(7, 0.9 + 0.45 * len(table)))
    plots.heatmap(ax, values, list(table), list(alarms))
    ax.tick_params(axis="x", labelrotation=20)
    ax.grid(visible=False)
    return fig
