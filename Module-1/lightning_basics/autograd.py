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


class Node:
    """One value in a computational graph: an array of float64, its gradient, and where it came from.

    Args:
        data: a number or an array.
        parents: the nodes it was computed from.
        op: what computed it, for drawings.

    Attributes:
        grad: d(root)/d(self) once `root.backward()` has run, of `data`'s shape; backward adds to it, as in torch.
    """

    __array_ufunc__ = None  # so that `array + node` asks the node, and NumPy does not spread it over the elements

    def __init__(self, data: Values, parents: tuple[Node, ...] = (), op: str = "") -> None:
        self.data: Array = np.asarray(data, dtype=np.float64)
        self.grad: Array = np.zeros_like(self.data)
        self.parents = parents
        self.op = op
        self.pass_back: Callable[[Array], tuple[Array, ...]] = lambda grad: ()

    # ---- operations: each names its parents and the gradient that each parent receives ----

    def __add__(self, other: Node | Values) -> Node:
        other = as_node(other)
        out = Node(self.data + other.data, (self, other), "+")
        out.pass_back = lambda grad: (grad, grad)
        return out

    def __sub__(self, other: Node | Values) -> Node:
        other = as_node(other)
        out = Node(self.data - other.data, (self, other), "−")
        out.pass_back = lambda grad: (grad, -grad)
        return out

    def __mul__(self, other: Node | Values) -> Node:
        other = as_node(other)
        out = Node(self.data * other.data, (self, other), "×")
        out.pass_back = lambda grad: (grad * other.data, grad * self.data)
        return out

    def __pow__(self, exponent: float) -> Node:
        out = Node(self.data**exponent, (self,), f"^{exponent:g}")
        out.pass_back = lambda grad: (grad * exponent * self.data ** (exponent - 1),)
        return out

    def __matmul__(self, other: Node | Values) -> Node:
        other = as_node(other)
        if self.data.ndim != 2 or other.data.ndim != 2:
            raise ValueError(f"@ takes two matrices here, got shapes {self.data.shape} and {other.data.shape}")
        out = Node(np.matmul(self.data, other.data), (self, other), "@")
        out.pass_back = lambda grad: (np.matmul(grad, other.data.T), np.matmul(self.data.T, grad))
        return out

    def sum(self) -> Node:
        out = Node(self.data.sum(), (self,), "sum")
        out.pass_back = lambda grad: (np.broadcast_to(grad, self.data.shape),)
        return out

    def exp(self) -> Node:
        out = Node(np.exp(self.data), (self,), "exp")
        out.pass_back = lambda grad: (grad * out.data,)
        return out

    def log(self) -> Node:
        out = Node(np.log(self.data), (self,), "log")
        out.pass_back = lambda grad: (grad / self.data,)
        return out

    def tanh(self) -> Node:
        out = Node(np.tanh(self.data), (self,), "tanh")
        out.pass_back = lambda grad: (grad * (1 - out.data**2),)
        return out

    def relu(self) -> Node:
        out = Node(np.maximum(self.data, 0), (self,), "relu")
        out.pass_back = lambda grad: (grad * (self.data > 0),)  # 0 at the bend itself, as torch has it
        return out

    # ---- the rest is made of those ----

    def mean(self) -> Node:
        return self.sum() * (1 / self.data.size)

    def __neg__(self) -> Node:
        return self * -1.0

    def __truediv__(self, other: Node | Values) -> Node:
        return self * as_node(other) ** -1.0

    def __radd__(self, other: Values) -> Node:
        return as_node(other) + self

    def __rmul__(self, other: Values) -> Node:
        return as_node(other) * self

    def __rsub__(self, other: Values) -> Node:
        return as_node(other) - self

    def __rtruediv__(self, other: Values) -> Node:
        return as_node(other) / self

    # ---- the backward pass ----

    def backward(self) -> None:
        """Add d(self)/d(node) to the `grad` of every node that `self` was computed from.

        Raises:
            ValueError: when `self` is not a scalar: only a scalar has a gradient of its operands' shapes.
        """
        if self.data.ndim != 0:
            raise ValueError(f"backward() starts at a scalar, not at shape {self.data.shape}; take .sum() or .mean()")
        # The gradients of this pass are kept apart from `.grad`, which may hold an earlier pass's.
        arrived: dict[int, Array] = {id(self): np.ones(())}
        for node in reversed(topological_order(self)):
            grad = arrived.pop(id(node))
            node.grad = node.grad + grad
            for parent, given in zip(node.parents, node.pass_back(grad), strict=True):
                given = unbroadcast(given, parent.data.shape)
                arrived[id(parent)] = arrived[id(parent)] + given if id(parent) in arrived else given

    def zero_grad(self) -> None:
        self.grad = np.zeros_like(self.data)

    def __repr__(self) -> str:
        value = f"{self.data:.4g}" if self.data.ndim == 0 else f"shape {self.data.shape}"
        return f"Node({value}{', op ' + self.op if self.op else ''})"


def as_node(value: Node | Values) -> Node:
    """`value` itself, or a new leaf that holds it."""
    return value if isinstance(value, Node) else Node(value)


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
