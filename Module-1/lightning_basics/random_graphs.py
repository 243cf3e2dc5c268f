"""Random computational graphs, to prove one autograd engine against another.

A program is a list of steps that runs on anything with Python's operators and torch's method names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPES = [(), (3,), (1, 3), (3, 1), (3, 3), (3, 3)]  # every pair broadcasts; matrices more often, for `@`
BINARY = ["add", "sub", "mul", "div", "matmul"]
UNARY = ["tanh", "relu", "exp", "log", "square", "mean", "sum"]


def random_program(seed: int, steps: int = 12) -> tuple[list[NDArray[np.float64]], list[tuple[str, int, int]]]:
    """Leaf values of several shapes, and steps `(operation, operand, other operand)` that each add one value.

    Operands are drawn from all earlier values, so that some are used several times.
    """
    rng = np.random.default_rng(seed)
    leaves = [rng.standard_normal(SHAPES[i]) for i in rng.integers(len(SHAPES), size=4)]
    program = []
    for step in range(steps):
        names = BINARY if rng.random() < 0.6 else UNARY
        first, second = rng.integers(len(leaves) + step, size=2)
        program.append((str(rng.choice(names)), int(first), int(second)))
    return leaves, program


def run_program(leaves: list[Any], program: list[tuple[str, int, int]]) -> Any:
    """Run the steps on `leaves` and return the mean of the sums of all values, a scalar.

    Arguments of `exp`, `log` and `/` are kept where the functions are smooth and small, so that a difference
    between two engines is a bug and not rounding blown up. A matrix product whose operands are not both 3 x 3 is
    taken as a product of the elements.
    """
    values = list(leaves)
    for name, first, second in program:
        a, b = values[first], values[second]
        values.append(_apply(name, a, b))
    total = values[0].sum()
    for value in values[1:]:
        total = total + value.tanh().sum()
    return total * (1 / len(values))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.data.shape)


def _apply(name: str, a: Any, b: Any) -> Any:
    if name == "add":
        return a + b
    if name == "sub":
        return a - b
    if name == "mul" or (name == "matmul" and not _shape(a) == _shape(b) == (3, 3)):
        return a.tanh() * b
    if name == "matmul":
        return a.tanh() @ b.tanh()
    if name == "div":
        return a / (b * b + 1.0)
    if name == "exp":
        return a.tanh().exp()
    if name == "log":
        return (a * a + 0.5).log()
    if name == "square":
        return a.tanh() ** 2
    return getattr(a, name)()
