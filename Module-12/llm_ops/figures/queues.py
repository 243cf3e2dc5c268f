"""Drawings and plots of the lesson on capacity and latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from course import plots

LOOKS = ((plots.BLUE, "o"), (plots.RED, "D"), (plots.GREEN, "s"), (plots.ORANGE, "^"))


def one_server() -> plots.Drawing:
    """Callers, a queue, a server."""
    draw = plots.Drawing(6.5, 2.1, "one server: requests come at a rate, each is served for some seconds")
    draw.box("callers", 0.1, 0.5, text="callers", look="step", width=0.9)
    for place in range(3):
        draw.box(f"w{place}", 1.75 + 0.62 * place, 0.5, text="waits", width=0.52)
    draw.box("server", 4.0, 0.5, text="server", shape="S seconds each", look="weight", width=1.15)
    draw.box("done", 5.45, 0.5, text="answered", look="step", width=0.95)
    draw.arrow("callers", "w0", "rate").arrow("w2", "server").arrow("server", "done", "rate")
    draw.group(("w0", "w2", "server"), "inside: L requests, each stays W seconds")
    return draw


def replica() -> plots.Drawing:
    """A serving engine: places in a batch, and the steps that all of them share."""
    draw = plots.Drawing(6.4, 3.3, "one replica: four places that share each step")
    draw.box("queue", 0.1, 1.2, text="queue", shape="prompts wait", look="step", width=1.0)
    for place, (text, look) in enumerate((
        ("place 1: writes", "data"), ("place 2: writes", "data"), ("place 3: reads its prompt", "loss"),
        ("place 4: free", "gone"),
    )):  # fmt: skip
        draw.box(f"p{place}", 2.35, 0.15 + 0.75 * place, text=text, look=look, width=1.65, height=0.5)
    draw.box("step", 4.15, 1.2, text="one step", shape="fixed + 2 x word\n+ n x prompt token", look="weight",
             width=1.35, height=0.95)  # fmt: skip
    draw.box("out", 5.4, 1.2, text="a token\nfor each", look="step", width=0.85)
    draw.arrow("queue", "p3", dashed=True)
    for place in range(3):
        draw.arrow(f"p{place}", "step")
    draw.arrow("step", "out")
    return draw


def loops() -> plots.Drawing:
    """Who decides when the next request comes."""
    draw = plots.Drawing(6.4, 2.6, "open and closed: who decides when the next request comes?")
    draw.box("clock", 0.3, 0.25, text="a clock", look="step", width=0.95)
    draw.box("open", 2.3, 0.25, text="server", look="weight", width=1.0)
    draw.box("away", 4.4, 0.25, text="answer", width=0.9)
    draw.chain("clock", "open", "away")
    draw.note(5.5, 0.25, "open: nobody waits\nfor anybody")
    draw.box("caller", 0.3, 1.5, text="caller", look="step", width=0.95)
    draw.box("closed", 2.3, 1.5, text="server", look="weight", width=1.0)
    draw.box("back", 4.4, 1.5, text="answer", width=0.9)
    draw.chain("caller", "closed", "back")
    draw.arrow("back", "caller", "then the next one", bend=-0.32, above=False)
    draw.note(5.45, 1.5, "closed: a slow server\nis asked less")
    return draw


def cluster() -> plots.Drawing:
    """A balancer before many replicas."""
    draw = plots.Drawing(6.4, 3.2, "many replicas: one is lost, one more is started")
    draw.box("callers", 0.1, 1.2, text="callers", look="step", width=0.9)
    draw.box("balancer", 1.9, 1.2, text="balancer", shape="which one?", look="weight", width=1.1)
    for row, (text, look) in enumerate((
        ("replica 1: 3 inside", "data"), ("replica 2: 1 inside", "data"), ("replica 3: lost", "gone"),
        ("replica 4: starts", "step"),
    )):  # fmt: skip
        draw.box(f"r{row}", 4.5, 0.15 + 0.75 * row, text=text, look=look, width=1.7, height=0.5)
    draw.chain("callers", "balancer")
    draw.arrow("balancer", "r0").arrow("balancer", "r1")
    draw.arrow("r2", "balancer", dashed=True)
    return draw


def mean_waits(
    loads: Sequence[float], law: Mapping[str, Sequence[float]], simulated: Mapping[str, Sequence[float]]
) -> Any:
    """The mean wait of one server by its load: the law as lines, simulated as points."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, values), (color, marker) in zip(law.items(), LOOKS, strict=False):
        ax.plot(loads, values, color=color, label=f"{name}: formula")
        ax.plot(loads, simulated[name], color=color, marker=marker, linestyle="", label=f"{name}: simulated")
    ax.set(xlabel="load (share of the time that the server is busy)", ylabel="mean wait (service times)")
    ax.legend()
    return fig


def tails(rates: Sequence[float], found: Mapping[str, Sequence[float]], full: float, unit: str) -> Any:
    """Percentiles by rate: predicted as lines, measured as points, a logarithmic axis."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.6))
    for name, values in found.items():
        color, marker = LOOKS["p99" in name]
        line = "-" if "predicted" in name else ""
        ax.plot(rates, values, color=color, linestyle=line, marker="" if line else marker, label=name)
    ax.axvline(full, color="black", linestyle="--", linewidth=1)
    ax.annotate("capacity", (full, ax.get_ylim()[1]), xytext=(4, -2), textcoords="offset points", va="top", fontsize=9)
    ax.set(yscale="log", xlabel="arrivals (requests/s)", ylabel=unit)
    ax.legend()
    return fig


def goodput(rates: Sequence[float], predicted: Sequence[float], measured: Sequence[float], full: float) -> Any:
    """Answers that came in time, a second, by the rate of arrivals."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.0))
    ax.plot(rates, rates, color="black", linestyle=":", linewidth=1, label="all that came")
    ax.plot(rates, predicted, color=plots.BLUE, label="predicted")
    ax.plot(rates, measured, color=plots.RED, marker="D", linestyle="", label="measured")
    ax.axvline(full, color="black", linestyle="--", linewidth=1)
    ax.set(xlabel="arrivals (requests/s)", ylabel="in time (requests/s)", ylim=(0, None))
    ax.legend()
    return fig


def open_and_closed(points: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """The 99th percentile of the first token by the rate of answers, for both kinds of callers."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.0))
    for (name, values), (color, marker) in zip(points.items(), LOOKS, strict=False):
        ax.plot([x for x, _ in values], [y for _, y in values], color=color, marker=marker, label=name)
    ax.set(yscale="log", xlabel="answered (requests/s)", ylabel="first token, p99 (s)")
    ax.legend()
    return fig


def day(seconds: Sequence[float], rate: Sequence[float], replicas: Sequence[tuple[float, int]],
        waits: Sequence[tuple[float, float]]) -> Any:  # fmt: skip
    """A day with a peak: arrivals, replicas that follow, and what callers wait meanwhile."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(3, 1, figsize=(7, 5.0), sharex=True)
    axes[0].plot(seconds, rate, color=plots.BLUE)
    axes[0].set(ylabel="arrivals\n(requests/s)", ylim=(0, None))
    axes[1].step([at for at, _ in replicas], [count for _, count in replicas], where="post", color=plots.GREEN)
    axes[1].set(ylabel="replicas", ylim=(0, None))
    axes[2].plot([at for at, _ in waits], [wait for _, wait in waits], color=plots.RED)
    axes[2].set(ylabel="first token,\np99 (s)", xlabel="time (s)", yscale="log")
    return fig
