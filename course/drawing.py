"""Drawings of structure: boxes, arrows and shapes on a grid, in the look of `course.plots`, a line for each part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

COLUMN, ROW = 1.5, 0.95  # inches from one place of the grid to the next
PAD = 0.12  # around a group
HEAD = 0.25  # above the first row, for a group's text


@dataclass(frozen=True)
class Box:
    """Where a box is, in inches from the upper left, and its size."""

    x: float
    y: float
    width: float
    height: float


class Drawing:
    """A figure of boxes and arrows.

    Places are (column, row) of a grid, from the upper left and with fractions where one is between two. What a box is
    shows in its look: "data" that flows (blue), "weight" that is learned (orange), "step" that computes (white), "loss"
    or whatever else is to be seen first (red), "gone" for what is left out (dashed, grey).

    Args:
        columns, rows: places of the grid.
        title: above the drawing.
        ax: matplotlib axes to draw into; by default a figure of its own, at most 7 inches wide.
    """

    def __init__(self, columns: float, rows: float, title: str = "", ax: Any = None) -> None:
        import matplotlib.pyplot as plt

        self._scale = min(1.0, 7.0 / (columns * COLUMN))
        if ax is None:
            size = (columns * COLUMN * self._scale, rows * ROW + HEAD + (0.3 if title else 0))
            ax = plt.figure(figsize=size).add_subplot()
        self.ax, self.boxes, self._size = ax, dict[str, Box](), (columns, rows)
        ax.set(xlim=(0, columns * COLUMN), ylim=(rows * ROW, -HEAD), xticks=[], yticks=[])
        ax.axis("off")
        if title:
            ax.set_title(title)

    def box(
        self, name: str, column: float, row: float, text: str | None = None, shape: str = "", look: str = "data",
        width: float = 0.78, height: float = 0.6,
    ) -> Drawing:  # fmt: skip
        """Draw a box.

        Args:
            name: for arrows; also its text, where none is given.
            column, row: its middle.
            text: what stands in it; lines are parted by a line break.
            shape: of a tensor, below the text, such as "B, T, C".
            look: see above.
            width, height: shares of a place of the grid.

        Raises:
            ValueError: for a name that there is already, a look that is none, or a box that would be cut off.
        """
        from matplotlib.patches import FancyBboxPatch

        if name in self.boxes:
            raise ValueError(f"there is a box {name!r} already; give each its own name")
        if look not in LOOKS:
            raise ValueError(f"look={look!r}: choose one of {', '.join(LOOKS)}")
        for middle, extent, size, wrong in (
            (column, width, self._size[0], "column"), (row, height, self._size[1], "row")
        ):  # fmt: skip
            if middle + 0.5 + extent / 2 > size + 0.01 or middle + 0.5 - extent / 2 < -0.01:
                least = f"{middle + 0.5 + extent / 2:.3g}"
                raise ValueError(
                    f"box {name!r} at {wrong} {middle:g} is cut off: the drawing has {size:g}, not {least}"
                )
        box = Box((column + 0.5) * COLUMN, (row + 0.5) * ROW, width * COLUMN, height * ROW)
        self.boxes[name] = box
        patch = FancyBboxPatch(
            (box.x - box.width / 2, box.y - box.height / 2), box.width, box.height,
            boxstyle="round,pad=0,rounding_size=0.08", linewidth=1.3, **LOOKS[look],
        )  # fmt: skip
        self.ax.add_patch(patch)
        lines = (name if text is None else text) + (f"\n({shape})" if shape else "")
        self._text(box.x, box.y, lines, color="#555555" if look == "gone" else "black")
        return self

    def arrow(
        self, start: str, end: str, text: str = "", bend: float = 0.0, dashed: bool = False, above: bool = True
    ) -> Drawing:
        """Draw an arrow from one box to another.

        Args:
            start, end: names of boxes.
            text: beside its middle, such as a shape.
            bend: to one side, as a share of its length; negative to the other.
            dashed: for what is not always there, such as a gradient or a cache.
            above: whether the text stands above (or left of) it.

        Raises:
            KeyError: for a name that is no box's.
        """
        for name in (start, end):
            if name not in self.boxes:
                raise KeyError(f"no box {name!r}; there are {', '.join(self.boxes)}")
        one, other = self.boxes[start], self.boxes[end]
        x, y = other.x - one.x, other.y - one.y
        from_x, from_y = _edge(one, x, y)
        to_x, to_y = _edge(other, -x, -y)
        self.ax.annotate(
            "", xy=(to_x, to_y), xytext=(from_x, from_y),
            arrowprops={
                "arrowstyle": "-|>", "color": "#444444", "linewidth": 1.2, "shrinkA": 1, "shrinkB": 1,
                "linestyle": "--" if dashed else "-", "connectionstyle": f"arc3,rad={bend}",
            },
        )  # fmt: skip
        if text:
            # The middle of the curve lies half of `bend` beside the straight line.
            middle_x = (from_x + to_x) / 2 - (to_y - from_y) * bend / 2
            middle_y = (from_y + to_y) / 2 + (to_x - from_x) * bend / 2
            side = -1 if above else 1
            if abs(x) > 3 * abs(y):
                self._text(middle_x, middle_y + side * 0.13, text, size=9, color="#333333")
            else:  # beside a slanted line, where it leaves room
                right = above == (x * y >= 0) if x else not above
                align = "left" if right else "right"
                self._text(middle_x + (0.1 if right else -0.1), middle_y + side * 0.06, text, size=9, align=align)
        return self

    def chain(self, *names: str) -> Drawing:
        """An arrow from each box to the next."""
        for start, end in pairwise(names):
            self.arrow(start, end)
        return self

    def group(self, names: Iterable[str], text: str = "") -> Drawing:
        """A dotted line around some boxes, with a text at its upper left: what is one module, or one machine."""
        from matplotlib.patches import FancyBboxPatch

        boxes = [self.boxes[name] for name in names]
        left, right = min(b.x - b.width / 2 for b in boxes) - PAD, max(b.x + b.width / 2 for b in boxes) + PAD
        top, bottom = min(b.y - b.height / 2 for b in boxes) - PAD, max(b.y + b.height / 2 for b in boxes) + PAD
        top -= 0.16 if text else 0
        self.ax.add_patch(
            FancyBboxPatch(
                (left, top), right - left, bottom - top, boxstyle="round,pad=0,rounding_size=0.1", fill=False,
                edgecolor="#777777", linestyle=":", linewidth=1.3,
            )
        )  # fmt: skip
        if text:
            self._text(left + 0.07, top + 0.12, text, size=9, color="#555555", align="left")
        return self

    def note(self, column: float, row: float, text: str) -> Drawing:
        """A text at a place of the grid."""
        self._text((column + 0.5) * COLUMN, (row + 0.5) * ROW, text, size=9, color="#333333")
        return self

    def _ipython_display_(self) -> None:
        """Nothing: a cell that ends with the drawing shows the figure, and not the object's name below it."""

    def _text(
        self, x: float, y: float, text: str, size: float = 10, color: str = "black", align: str = "center"
    ) -> None:
        # Letters keep their size where the grid is drawn smaller: down to what 700 pixels show well.
        size = max(8.0, size * self._scale)
        self.ax.text(x, y, text, ha=align, va="center", fontsize=size, color=color, linespacing=1.25)


LOOKS: dict[str, dict[str, Any]] = {
    "data": {"facecolor": "#DCEBF7", "edgecolor": "#0072B2"},
    "weight": {"facecolor": "#FBE8C6", "edgecolor": "#E69F00"},
    "step": {"facecolor": "white", "edgecolor": "#444444"},
    "loss": {"facecolor": "#F9DDCB", "edgecolor": "#D55E00"},
    "gone": {"facecolor": "white", "edgecolor": "#999999", "linestyle": "--"},
}


def _edge(box: Box, x: float, y: float) -> tuple[float, float]:
    """Where a line from a box's middle in a direction leaves it."""
    share = min(box.width / 2 / abs(x) if x else float("inf"), box.height / 2 / abs(y) if y else float("inf"))
    return box.x + x * share, box.y + y * share
