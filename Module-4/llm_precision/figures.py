"""Figures of this module's lessons: formats and their ranges, the roofline, predictions beside measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llm_core.costs.scaling import LossFit
from torch import Tensor

from course import plots
from llm_precision.budget import Peak
from llm_precision.laws.fit import Run
from llm_precision.laws.isoflop import Parabola
from llm_precision.numbers.formats import Format
from llm_precision.roofline import Ceilings

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


def roofline(ceilings: Ceilings, dtype: str, points: Mapping[str, tuple[float, float]]) -> Any:
    """FLOP/s over FLOPs a byte: the two ceilings as lines, and work as points below them.

    Args:
        ceilings: of the device.
        dtype: whose rate is the flat one.
        points: intensity in FLOPs a byte and reached FLOP/s, by name.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.6))
    values = [intensity for intensity, _ in points.values()]
    x = np.logspace(math.log10(min(values) / 3), math.log10(max(*values, ceilings.ridge(dtype)) * 3), 200)
    ax.plot(x, np.minimum(x * ceilings.bandwidth, ceilings.rates[dtype]), color=plots.BLACK)
    for (name, (intensity, reached)), color in zip(points.items(), plots.COLORS, strict=False):
        ax.plot(intensity, reached, "o", color=color, markersize=7, label=name)
    ax.axvline(ceilings.ridge(dtype), color="grey", linewidth=0.8, linestyle="--")
    ax.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="FLOP/s")
    ax.legend(fontsize=8, loc="lower right")
    return fig


def moments(peaks: Mapping[str, Peak]) -> Any:
    """The bytes at each moment of a step, a group of bars for each peak; what is held throughout is dark."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(peaks), figsize=(7, 2.6), sharey=True, squeeze=False)
    for ax, (name, peak) in zip(axes[0], peaks.items(), strict=True):
        names = list(peak.moments)
        ax.bar(names, [peak.held / 2**20] * len(names), color=plots.BLUE, alpha=0.8)
        more = [(value - peak.held) / 2**20 for value in peak.moments.values()]
        ax.bar(names, more, bottom=peak.held / 2**20, color=plots.ORANGE, alpha=0.6)
        ax.axhline(peak.bytes / 2**20, color=plots.BLACK, linewidth=0.8, linestyle="--")
        ax.set_title(name, fontsize=10)
        ax.tick_params(axis="x", labelrotation=35, labelsize=8)
    axes[0][0].set(ylabel="MiB")
    return fig


def against(panels: Mapping[str, Mapping[str, tuple[float, float]]]) -> Any:
    """Predicted over measured values, a panel each, with the line y = x.

    Args:
        panels: by the quantity and its unit; in each the pairs (predicted, measured) by name, a number on each point
            and the names below.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(panels), figsize=(7, 4.4), squeeze=False)
    names = list(dict.fromkeys(name for pairs in panels.values() for name in pairs))
    for ax, (quantity, pairs) in zip(axes[0], panels.items(), strict=True):
        values = [value for pair in pairs.values() for value in pair]
        ends = (min(values) * 0.8, max(values) * 1.25)
        ax.plot(ends, ends, color="grey", linewidth=0.8)
        for name, pair in pairs.items():
            ax.plot(*pair, "o", color=plots.COLORS[names.index(name) % 7], markersize=9, alpha=0.7)
        width = math.log(ends[1] / ends[0])
        for told, place in _together({str(names.index(name) + 1): pair for name, pair in pairs.items()}, width):
            ax.annotate(told, place, textcoords="offset points", xytext=(7, -10), fontsize=8)
        scale = "log" if ends[1] > 5 * ends[0] else "linear"
        ax.set(xscale=scale, yscale=scale, xlim=ends, ylim=ends, xlabel=f"predicted {quantity}",
               ylabel=f"measured {quantity}")  # fmt: skip
        for axis in (ax.xaxis, ax.yaxis) if scale == "log" else ():
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(lambda value, _: f"{value:g}" if str(value)[0] in "235" else "")
            axis.set_tick_params(which="both", labelsize=8)
    lines = [f"{number} {name}" for number, name in enumerate(names, 1)]
    third = -(-len(lines) // 3)
    for column in range(3):
        fig.text(0.03 + 0.33 * column, -0.01, "\n".join(lines[column * third : (column + 1) * third]), va="top",
                 fontsize=8)  # fmt: skip
    return fig


def _together(points: Mapping[str, tuple[float, float]], width: float) -> list[tuple[str, tuple[float, float]]]:
    """Labels and where they stand: points near a group's first share one (`width`: an axis' logarithms)."""
    groups: list[tuple[list[str], tuple[float, float]]] = []
    for label, (x, y) in points.items():
        for labels, (first_x, first_y) in groups:
            if abs(math.log(x / first_x)) < 0.08 * width and abs(math.log(y / first_y)) < 0.035 * width:
                labels.append(label)
                break
        else:
            groups.append(([label], (x, y)))
    return [(", ".join(labels), place) for labels, place in groups]


def tile_map(time: int, block: int) -> Any:
    """A causal table of scores in tiles: whole tiles, those on the diagonal that need a mask, and those left out."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    fig, ax = plt.subplots(figsize=(7, 3.6))
    looks = (("whole", plots.BLUE, 0.5), ("masked in part", plots.ORANGE, 0.6), ("never computed", "white", 1.0))
    for row in range(0, time, block):
        for column in range(0, time, block):
            _, color, alpha = looks[0 if column < row else 1 if column == row else 2]
            ax.add_patch(Rectangle((column, row), block, block, facecolor=color, alpha=alpha, edgecolor="grey"))
    row = time // block // 2 * block
    ax.add_patch(Rectangle((0, row), row + block, block, fill=False, edgecolor=plots.RED, linewidth=2.5))
    ax.annotate("one tile of queries,\ncarried over its keys", (row + block, row + block / 2), (time * 1.08, row),
                fontsize=9, color=plots.RED, va="center",
                arrowprops={"arrowstyle": "->", "color": plots.RED})  # fmt: skip
    for place, (name, color, alpha) in enumerate(looks):
        ax.add_patch(Rectangle((time * 1.08, time * (0.04 + 0.12 * place)), time * 0.06, time * 0.08, facecolor=color,
                               alpha=alpha, edgecolor="grey"))  # fmt: skip
        ax.text(time * 1.17, time * (0.08 + 0.12 * place), name, fontsize=9, va="center")
    ax.set(xlim=(0, time * 1.7), ylim=(time, 0), xlabel="keys", ylabel="queries", aspect="equal",
           xticks=range(0, time + 1, block), yticks=range(0, time + 1, block))  # fmt: skip
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    return fig


def isoflop(
    runs: Mapping[float, Sequence[Run]], vertices: Mapping[float, Parabola] | None = None, law: LossFit | None = None
) -> Any:
    """Losses over parameters, a colour for each budget of FLOPs; parabolas with their vertices, or a law's curves."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.8))
    for (budget, each), color in zip(runs.items(), plots.COLORS, strict=False):
        sizes = np.array([run.parameters for run in each])
        ax.plot(sizes, [run.loss for run in each], "o", color=color, markersize=5, label=f"{budget:.1e} FLOPs")
        over = np.geomspace(sizes.min() * 0.8, sizes.max() * 1.25, 100)
        if law:
            ax.plot(over, [law.loss(N, budget / (6 * N)) for N in over], color=color, linewidth=1.3)
        elif vertices:
            found = vertices[budget]
            ax.plot(over, found.lowest + found.curvature / 2 * np.log(over / found.vertex) ** 2, color=color,
                    linewidth=1.3)  # fmt: skip
        if vertices:
            ax.plot(
                vertices[budget].vertex, vertices[budget].lowest, "x", color=color, markersize=10, markeredgewidth=2.5
            )
    ax.set(xscale="log", xlabel="parameters N", ylabel="loss, nats a byte")
    ax.xaxis.set_minor_formatter("")
    ax.legend(fontsize=8)
    return fig


def landscape(exponents: Sequence[float], errors: Tensor) -> Any:
    """The error of the best law for each pair of exponents, with its lowest place."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.6))
    least = errors.min().item()
    levels = [least * factor for factor in (1.02, 1.1, 1.25, 1.5, 2, 3, 5)]
    lines = ax.contour(exponents, exponents, errors.numpy(), levels=levels, colors=plots.BLUE, linewidths=1)
    ax.clabel(lines, fmt=lambda value: f"{value:.1%}", fontsize=8)
    row, column = divmod(int(errors.argmin()), errors.shape[1])
    ax.plot(exponents[column], exponents[row], "x", color=plots.RED, markersize=11, markeredgewidth=2.5)
    ax.set(xlabel="beta, of the text", ylabel="alpha, of the size")
    return fig


def prediction(
    law: LossFit,
    fitted: Mapping[float, Sequence[Run]],
    expected: Mapping[float, tuple[float, float, float]],
    made: Mapping[float, Sequence[Run]],
) -> Any:
    """A law's IsoFLOP curves through the runs that it was fitted to, and beside an interval the runs made afterwards.

    Args:
        law: the fit.
        fitted: runs by budget.
        expected: lower end, prediction and upper end by budget; at the size of the first run made.
        made: runs by budget.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.8))
    sizes = [run.parameters for each in fitted.values() for run in each]
    over = np.geomspace(min(sizes) * 0.8, max(sizes) * 1.25, 100)
    for budget, color in zip((*fitted, *made), plots.COLORS, strict=False):
        dashed = "--" if budget in made else "-"
        ax.plot(over, [law.loss(N, budget / (6 * N)) for N in over], dashed, color=color, linewidth=1.3)
        for run in fitted.get(budget, ()):
            ax.plot(run.parameters, run.loss, "o", color=color, markersize=5)
        for run in made.get(budget, ()):
            low, middle, high = expected[budget]
            ax.errorbar(run.parameters, middle, [[middle - low], [high - middle]], color=color, capsize=5, linewidth=2)
            ax.plot(run.parameters, run.loss, "*", color=plots.RED, markersize=13)
        ax.text(over[-1] * 1.05, law.loss(over[-1], budget / (6 * over[-1])), f"{budget:.1e}", color=color, fontsize=9,
                va="center")  # fmt: skip
    ax.set(xscale="log", xlabel="parameters N", ylabel="loss, nats a byte", xlim=(over[0], over[-1] * 1.6))
    return fig


def bias(apart: Sequence[float], values: Sequence[tuple[float, float]]) -> Any:
    """How far a parabola's vertex is off, simulated and by the third order, over the difference of the exponents."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.0))
    ax.plot(apart, [100 * predicted for _, predicted in values], color=plots.BLUE, label="third order")
    ax.plot(apart, [100 * simulated for simulated, _ in values], "o", color=plots.RED, label="simulated")
    ax.set(xlabel="alpha - beta", ylabel="vertex off by, % of best N")
    ax.legend(fontsize=9)
    return fig
