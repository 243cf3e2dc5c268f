"""One look for every figure: colour-blind safe, readable at 700 px, axes with units.

`plots.Drawing` draws structure: who holds what, what flows where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler

from course.drawing import Drawing

__all__ = ["COLORS", "Drawing", "heatmap", "use_style"]

# Okabe and Ito's palette: told apart with every common colour blindness. https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip


def use_style() -> None:
    """Set matplotlib's defaults for the notebook. Call it once, in the set-up cell."""
    matplotlib.rcParams.update(
        {
            "figure.figsize": (7.0, 3.6),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.prop_cycle": cycler(color=COLORS[:7]),
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "#e0e0e0",
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "image.cmap": "Blues",
        }
    )


def heatmap(
    ax: Any,
    values: Any,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    numbers: str | None = None,
    vmin: float | None = 0.0,
    vmax: float | None = 1.0,
    cmap: str | None = None,
) -> Any:
    """Draw a matrix (an attention map, a mask) with its first row on top.

    Args:
        ax: matplotlib axes.
        values: array or tensor of shape (rows, columns).
        rows, columns: tick labels.
        numbers: a format such as ".2f" that writes each value into its cell; None writes nothing.
        vmin, vmax: values of the lightest and darkest colour; None takes them from the data.
        cmap: a matplotlib colour map; the style's by default.

    Returns:
        The image, for a colour bar.
    """
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)
    image = ax.imshow(array, vmin=vmin, vmax=vmax, cmap=cmap, aspect="auto")
    ax.grid(False)
    for axis, labels in ((ax.yaxis, rows), (ax.xaxis, columns)):
        if labels is not None:
            axis.set_ticks(range(len(labels)), labels)
    if numbers is not None:
        low, high = image.get_clim()
        for (row, column), value in np.ndenumerate(array):
            dark = (value - low) > 0.55 * (high - low)
            ax.text(
                column, row, format(value, numbers), ha="center", va="center", fontsize=9,
                color="white" if dark else "black",
            )  # fmt: skip
    return image
