"""Drawings and plots of the lesson on the whole way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from course import plots


def stages() -> plots.Drawing:
    """Who reads whose files."""
    draw = plots.Drawing(7.1, 3.3, "the stages; an arrow says whose files are read")
    draw.box("data", 0.5, 1.3, text="data", shape="text, shards", look="weight", width=0.95)
    draw.box("train", 1.7, 0.3, text="train", shape="BabyGPT", width=0.85)
    draw.box("adapt", 2.3, 2.3, text="adapt", shape="smollm2", width=0.85)
    draw.box("align", 2.9, 0.3, text="align", shape="GRPO", width=0.85)
    draw.box("quantize", 3.9, 1.3, text="quantize", shape="4, 8 bits", width=0.85)
    draw.box("export", 5.0, 1.3, text="export", shape="folders", width=0.85)
    draw.box("serve", 6.1, 0.3, text="serve", shape="load", look="step", width=0.85)
    draw.box("judge", 6.1, 2.3, text="judge", shape="gate", look="loss", width=0.85)
    draw.arrow("data", "train").arrow("data", "adapt").chain("train", "align", "quantize", "export", "serve")
    draw.arrow("adapt", "quantize").arrow("export", "judge")
    return draw


def seal() -> plots.Drawing:
    """What a seal says, and what it is compared with."""
    draw = plots.Drawing(7.3, 3.3, "what a seal says, and who looks at it")
    draw.box("before", 0.8, 0.3, text="digests of the\nstages before", look="weight", width=1.3, height=0.7)
    draw.box("now", 0.8, 1.3, text="settings now", look="weight", width=1.3)
    draw.box("disk", 0.8, 2.3, text="files now", shape="SHA-256 each", look="weight", width=1.3)
    draw.box("inputs", 2.9, 0.3, text="inputs", width=1.05)
    draw.box("settings", 2.9, 1.3, text="settings", width=1.05)
    draw.box("files", 2.9, 2.3, text="files", width=1.05)
    draw.box("digest", 4.6, 1.8, text="digest", shape="SHA-256", look="step", width=0.95)
    draw.box("after", 6.1, 1.8, text="inputs of the\nstage after", width=1.2, height=0.7)
    draw.arrow("before", "inputs", "equal?").arrow("now", "settings", "equal?").arrow("disk", "files", "equal?")
    draw.arrow("settings", "digest").arrow("files", "digest").arrow("digest", "after")
    return draw


def finish(
    counts: Sequence[int], laws: Mapping[str, Sequence[float]], drawn: Mapping[str, Sequence[tuple[float, float]]]
) -> Any:
    """Time to finish over time of work, against the number of pieces; lines by the formula, points drawn."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2))
    for (name, values), color, marker in zip(
        laws.items(), (plots.BLUE, plots.ORANGE, plots.RED), ("o", "s", "D"), strict=False
    ):
        axes.plot(counts, values, color=color, label=f"{name}, by the formula")
        means, errors = zip(*drawn[name], strict=True)
        axes.errorbar(counts, means, yerr=errors, fmt=marker, color=color, capsize=2, label=f"{name}, drawn")
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="equal pieces", ylabel="to finish / work, in seconds")
    axes.set_xticks(counts, [str(each) for each in counts])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    return figure


def times(seconds: Mapping[str, float], lost: Mapping[str, float]) -> Any:
    """Seconds of each stage, one after the other; and what a kill costs on average, three ways."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), width_ratios=(2, 1), layout="constrained")
    begin = 0.0
    for place, (name, value) in enumerate(seconds.items()):
        left.barh(place, value, left=begin, color=plots.BLUE)
        left.text(begin + value, place, f" {name}", va="center", fontsize=8)
        begin += value
    left.invert_yaxis()
    left.set(yticks=[], xlabel="seconds since the start", xlim=(0, 1.15 * begin))
    bars = right.bar(list(lost), list(lost.values()), color=(plots.RED, plots.ORANGE, plots.GREEN))
    right.bar_label(bars, fmt="%.0f", fontsize=8)
    right.set(ylabel="seconds lost by a kill")
    right.tick_params(axis="x", labelsize=8)
    return figure
