"""Reverse-mode automatic differentiation over NumPy arrays, in one file: what `loss.backward()` does.

Each operation returns a `Node` that remembers its parents and how to pass a gradient back to them. The names are
torch's: `data`, `grad`, `backward()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64] | np.float64  # NumPy gives a scalar, not an array, where no axis is left
Values = NDArray[Any] | np.generic | float | Sequence[Any]  # what can become a node
PassBack = Callable[[Array], tuple[Array, ...]]  # from a node's gradient to what each parent receives

# ---- operations: each names its parents and the gradient that each parent receives ----


def add(a: Node | Values, b: Node | Values) -> Node:
    a, b = as_node(a), as_node(b)
    return Node(a.data + b.data, (a, b), "+", lambda grad: (grad, grad))


def subtract(a: Node | Values, b: Node | Values) -> Node:
    a, b = as_node(a), as_node(b)
    return Node(a.data - b.data, (a, b), "−", lambda grad: (grad, -grad))


def multiply(a: Node | Values, b: Node | Values) -> Node:
    a, b = as_node(a), as_node(b)
    return Node(a.data * b.data, (a, b), "×", lambda grad: (grad * b.data, grad * a.data))


def power(a: Node, exponent: float) -> Node:
    return Node(a.data**exponent, (a,), f"^{exponent:g}", lambda grad: (grad * exponent * a.data ** (exponent - 1),))


def matmul(a: Node | Values, b: Node | Values) -> Node:
    a, b = as_node(a), as_node(b)
    if a.data.ndim != 2 or b.data.ndim != 2:
        raise ValueError(f"@ takes two matrices here, got shapes {a.data.shape} and {b.data.shape}")
    return Node(
        np.matmul(a.data, b.data), (a, b), "@",
        lambda grad: (np.matmul(grad, b.data.T), np.matmul(a.data.T, grad)),
    )  # fmt: skip


def total(a: Node) -> Node:
    return Node(a.data.sum(), (a,), "sum", lambda grad: (np.broadcast_to(grad, a.data.shape),))


def elementwise(
    op: str, value: Callable[[Array], Array], slope: Callable[[Array, Array], Any]
) -> Callable[[Node], Node]:
    """An operation on each element, from its value and its slope.

    Args:
        op: its name, for drawings.
        value: y of x.
        slope: dy/dx of x and y.
    """

    def operation(a: Node) -> Node:
        y = value(a.data)
        return Node(y, (a,), op, lambda grad: (grad * slope(a.data, y),))

    return operation


# ---- the node ----


class Node:
    """One value in a computational graph: an array of float64, its gradient, and where it came from.

    Args:
        data: a number or an array.
        parents: the nodes it was computed from.
        op: what computed it, for drawings.
        pass_back: from this node's gradient to the one that each parent receives; a leaf has none.

    Attributes:
        grad: d(root)/d(self) once `root.backward()` has run, of `data`'s shape; backward adds to it, as in torch.
    """

    __array_ufunc__ = None  # so that `array + node` asks the node, and NumPy does not spread it over the elements

    def __init__(
        self, data: Values, parents: tuple[Node, ...] = (), op: str = "", pass_back: PassBack = lambda grad: ()
    ) -> None:
        self.data: Array = np.asarray(data, dtype=np.float64)
        self.grad: Array = np.zeros_like(self.data)
        self.parents, self.op, self.pass_back = parents, op, pass_back

    __add__ = __radd__ = add
    __sub__ = subtract
    __mul__ = __rmul__ = multiply
    __pow__ = power
    __matmul__ = matmul
    sum = total
    exp = elementwise("exp", np.exp, lambda x, y: y)
    log = elementwise("log", np.log, lambda x, y: 1 / x)
    tanh = elementwise("tanh", np.tanh, lambda x, y: 1 - y**2)
    relu = elementwise("relu", lambda x: np.maximum(x, 0), lambda x, y: x > 0)  # 0 at the bend itself, as in torch

    def __neg__(self) -> Node:
        return self * -1.0

    def __truediv__(self, other: Node | Values) -> Node:
        return self * as_node(other) ** -1.0

    def __rsub__(self, other: Values) -> Node:
        return as_node(other) - self

    def __rtruediv__(self, other: Values) -> Node:
        return as_node(other) / self

    def mean(self) -> Node:
        return self.sum() * (1 / self.data.size)

    def backward(self) -> None:
        """Add d(self)/d(node) to the `grad` of every node that `self` was computed from; see `backward`."""
        backward(self)

    def zero_grad(self) -> None:
        self.grad = np.zeros_like(self.data)

    def __repr__(self) -> str:
        value = f"{self.data:.4g}" if self.data.ndim == 0 else f"shape {self.data.shape}"
        return f"Node({value}{', op ' + self.op if self.op else ''})"


def as_node(value: Node | Values) -> Node:
    """`value` itself, or a new leaf that holds it."""
    return value if isinstance(value, Node) else Node(value)


# ---- the backward pass ----


def backward(root: Node) -> None:
    """Add d(root)/d(node) to the `grad` of every node that `root` was computed from.

    Raises:
        ValueError: when `root` is not a scalar: only a scalar has a gradient of its operands' shapes.
    """
    if root.data.ndim != 0:
        raise ValueError(f"backward() starts at a scalar, not at shape {root.data.shape}; take .sum() or .mean()")
    # The gradients of this pass are kept apart from `.grad`, which may hold an earlier pass's.
    arrived: dict[int, Array] = {id(root): np.ones(())}
    for node in reversed(topological_order(root)):
        grad = arrived.pop(id(node))
        node.grad = node.grad + grad
        for parent, given in zip(node.parents, node.pass_back(grad), strict=True):
            given = unbroadcast(given, parent.data.shape)
            arrived[id(parent)] = arrived.get(id(parent), 0) + given


def topological_order(root: Node) -> list[Node]:
    """Every node that `root` depends on, parents before children, `root` last.

    Written with a stack of its own: a recursive walk would meet Python's recursion limit at a graph 1,000 deep.
    """
    order: list[Node] = []
    visited: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            order.append(node)
        elif id(node) not in visited:
            visited.add(id(node))
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents)
    return order


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum `grad` over the axes along which an operand of `shape` was repeated, so that it has `shape` again."""
    added = grad.ndim - len(shape)
    grad = grad.sum(axis=tuple(range(added)))
    repeated = tuple(axis for axis, size in enumerate(shape) if size == 1 and grad.shape[axis] != 1)
    return grad.sum(axis=repeated, keepdims=True)
