"""Figures of this module's lessons: formats as bits, their spacing, and tensors beside the ranges of formats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from course import plots
from llm_precision.numbers.formats import Format

MOST = 1_000_000  # numbers of a tensor in a histogram; of a larger one, evenly spaced ones


def bit_fields(formats: Sequence[Format]) -> Any:
    """Each format as a row of bits: sign, exponent, mantissa; 32 bits are the figure's width."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 0.42 * len(formats) + 0.5))
    fields = (("sign", plots.RED), ("exponent", plots.ORANGE), ("mantissa", plots.BLUE))
    for row, each in enumerate(formats):
        left = 0
        for (name, color), bits in zip(fields, (1, each.exponent_bits, each.mantissa_bits), strict=True):
            ax.barh(row, bits, left=left, height=0.7, color=color, alpha=0.35, label=name if row == 0 else None)
            for bit in range(left, left + bits):
                ax.barh(row, 1, left=bit, height=0.7, fill=False, edgecolor="white", linewidth=1)
            ax.text(left + bits / 2, row, str(bits), ha="center", va="center", fontsize=9)
            left += bits
    ax.set_yticks(range(len(formats)), [each.name for each in formats])
    ax.set(xlim=(0, 32), ylim=(len(formats) - 0.5, -0.5), xlabel="bits")
    ax.grid(False)
    ax.legend(loc="lower right")
    return fig


def spacings(formats: Sequence[Format], low: float = 1e-9, high: float = 1e6) -> Any:
    """The distance to the next number over the number, both on logarithmic axes."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.4))
    values = np.logspace(math.log10(low), math.log10(high), 1500)
    for each, color in zip(formats, plots.COLORS, strict=False):
        inside = values[values <= each.max]
        ax.plot(inside, [each.spacing(value) for value in inside], color=color, label=each.name)
        if each.max < high:
            ax.plot(each.max, each.spacing(each.max), "o", color=color, markersize=5)
    ax.set(xscale="log", yscale="log", xlabel="number", ylabel="distance to the next one")
    ax.legend(fontsize=9)
    return fig


def beside_ranges(tensors: Mapping[str, Tensor], formats: Sequence[Format]) -> Any:
    """Histograms of the sizes of numbers above the ranges of formats; subnormal numbers pale.

    Args:
        tensors: by name; zeros are left out, and of more than a million numbers some.
        formats: a bar each, from the smallest number above 0 to the largest.
    """
    import matplotlib.pyplot as plt

    fig, (above, below) = plt.subplots(
        2, 1, figsize=(7, 2.6 + 0.3 * len(formats)), sharex=True, height_ratios=[2.2, 0.35 * len(formats)]
    )
    for (name, tensor), color in zip(tensors.items(), plots.COLORS, strict=False):
        found = tensor.detach().flatten()
        found = found[:: max(1, len(found) // MOST)].float().abs()
        sizes = found[found > 0].log10().cpu().numpy()
        above.hist(sizes, bins=120, weights=np.full(len(sizes), 100 / max(len(sizes), 1)), histtype="step",
                   color=color, linewidth=1.6, label=name)  # fmt: skip
    above.set(ylabel="% of the numbers")
    above.legend(fontsize=9)
    for row, each in enumerate(formats):
        edges = [math.log10(edge) for edge in (each.min_subnormal, each.min_normal, each.max)]
        below.barh(row, edges[1] - edges[0], left=edges[0], color=plots.SKY, alpha=0.4, height=0.6)
        below.barh(row, edges[2] - edges[1], left=edges[1], color=plots.BLUE, alpha=0.8, height=0.6)
    below.set_yticks(range(len(formats)), [each.name for each in formats])
    below.set(xlabel="log10 of the size", xlim=(-16, 8), ylim=(len(formats) - 0.5, -0.5))
    return fig
