"""Draw a computational graph of the autograd engine: each node with its value and gradient, a column per depth."""

from __future__ import annotations

from typing import Any

from course.plots import Drawing
from lightning_basics.autograd import Node, topological_order


def draw_graph(root: Node, names: dict[int, str] | None = None, gradients: bool = True) -> Drawing:
    """Draw every node that `root` was computed from, leaves on the left, `root` on the right.

    Args:
        root: a scalar or small node.
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
    columns: dict[int, list[Node]] = {}
    for node in order:
        columns.setdefault(column[id(node)], []).append(node)
    rows = max(len(nodes) for nodes in columns.values())
    drawing = Drawing(max(columns) + 1, rows)
    for depth, nodes in columns.items():
        # Leaves below what is computed: the computed ones of neighbouring columns then stand on one line.
        for row, node in enumerate(sorted(nodes, key=lambda node: not node.parents)):
            text = f"{names.get(id(node), node.op or 'leaf')} = {_text(node.data)}"
            text += f"\ngrad {_text(node.grad)}" if gradients else ""
            look = "loss" if node is root else "step" if node.parents else "weight"
            drawing.box(str(id(node)), depth, row, text, look=look)
    for node in order:
        for parent in node.parents:
            drawing.arrow(str(id(parent)), str(id(node)))
    return drawing


def _text(value: Any) -> str:
    return f"{float(value):.4g}" if value.ndim == 0 else "×".join(map(str, value.shape))
