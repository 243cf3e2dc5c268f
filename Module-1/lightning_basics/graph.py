"""Draw a computational graph of the autograd engine: values above, gradients below, one column per depth."""

from __future__ import annotations

from typing import Any

from course.plots import BLUE, ORANGE, RED
from lightning_basics.autograd import Node, topological_order


def draw_graph(root: Node, ax: Any, names: dict[int, str] | None = None, gradients: bool = True) -> None:
    """Draw every node that `root` was computed from, leaves on the left, `root` on the right.

    Args:
        root: a scalar or small node.
        ax: matplotlib axes.
        names: names of nodes by `id(node)`; other nodes show their operation.
        gradients: whether to write each node's `grad` under its value.
    """
    names = names or {}
    order = topological_order(root)
    column: dict[int, int] = {}
    for node in order:
        column[id(node)] = 1 + max((column[id(parent)] for parent in node.parents), default=-1)
    # A leaf is drawn right before its first use, so that no arrow crosses the whole picture.
    for node in reversed(order):
        for parent in node.parents:
            if not parent.parents:
                column[id(parent)] = max(0, min(column[id(child)] for child in order if parent in child.parents) - 1)
    place: dict[int, tuple[float, float]] = {}
    columns: dict[int, list[Node]] = {}
    for node in order:
        columns.setdefault(column[id(node)], []).append(node)
    for depth, nodes in columns.items():
        for row, node in enumerate(nodes):
            place[id(node)] = (depth, (len(nodes) - 1) / 2 - row)
    for node in order:
        for parent in node.parents:
            ax.annotate(
                "", xy=place[id(node)], xytext=place[id(parent)],
                arrowprops={"arrowstyle": "->", "color": "#888888", "shrinkA": 24, "shrinkB": 24},
            )  # fmt: skip
    for node in order:
        label = names.get(id(node), node.op or "leaf")
        text = f"{label}\n{_text(node.data)}"
        color = ORANGE if not node.parents else BLUE
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": color, "linewidth": 1.5}
        x, y = place[id(node)]
        ax.text(x, y, text, ha="center", va="center", fontsize=9.5, bbox=box)
        if gradients:
            ax.text(x, y - 0.36, f"grad {_text(node.grad)}", ha="center", va="top", fontsize=9, color=RED)
    rows = max(len(nodes) for nodes in columns.values())
    ax.set_xlim(-0.5, max(columns) + 0.5)
    ax.set_ylim(-(rows - 1) / 2 - 0.8, (rows - 1) / 2 + 0.6)
    ax.axis("off")


def _text(value: Any) -> str:
    return f"{float(value):.4g}" if value.ndim == 0 else "×".join(map(str, value.shape))
