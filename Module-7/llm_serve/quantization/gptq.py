"""GPTQ: round the columns of a weight matrix one after the other, and let those to come make up for each error.

The error of a layer over its inputs is tr(D H D^T), with D the change of the weights and H = X^T X / n, the Hessian of
that error but for a factor. Frantar et al. 2022 (arXiv:2210.17323), algorithm 1, after OBQ (Frantar and Alistarh 2022).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_serve.quantization.rounding import IntWeight, WeightScheme, fit_grid

Hessian = Float[Tensor, "inputs inputs"]
Weight = Float[Tensor, "outputs inputs"]


class Order(NamedTuple):
    """The columns in the order of their rounding, and how the error of each is spread over those after it.

    Attributes:
        columns: their places in the matrix.
        factor: upper triangular U, with U^T U the inverse of the damped Hessian in that order.
    """

    columns: Int[Tensor, " inputs"]
    factor: Float[Tensor, "inputs inputs"]


def output_error(change: Weight, hessian: Hessian) -> float:
    """tr(D H D^T): the mean over the inputs of the squared change of the outputs, summed over the outputs."""
    return float(((change.to(hessian.dtype) @ hessian) * change).sum())


def damped(hessian: Hessian, damping: float) -> Float[Tensor, "inputs inputs"]:
    """The Hessian with a share of its mean diagonal added to the diagonal, in float64.

    A channel whose inputs were all 0 has nothing else there: its weights are rounded to nearest.
    """
    wide = hessian.double().clone()
    mean = wide.diagonal().mean()
    wide.diagonal().add_(damping * torch.where(mean > 0, mean, 1))  # no input at all: any order and any weights serve
    return wide


def rounding_order(hessian: Hessian, scheme: WeightScheme) -> Order:
    """Factor the inverse of the Hessian, once for all layers that have the same inputs.

    With columns counted from the last, H = R R^T for an upper triangular R, so that U = R^-1 has U^T U = H^-1: one
    Cholesky factor and one triangular inverse, and the inverse of H itself is never made.

    Raises:
        ValueError: when the Hessian is not finite, or not positive definite in spite of the damping.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the Hessian is not finite: an input of this layer is infinite or NaN; calibrate in float32")
    wide = damped(hessian, scheme.damping)
    if scheme.actorder:
        columns = wide.diagonal().argsort(descending=True, stable=True)
    else:
        columns = torch.arange(len(wide), device=wide.device)
    backwards = columns.flip(0)
    lower, failed = torch.linalg.cholesky_ex(wide[backwards][:, backwards])
    if int(failed):
        raise ValueError(
            f"the Hessian is not positive definite with damping={scheme.damping}; raise damping, or give more rows"
        )
    one = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    return Order(columns, torch.linalg.solve_triangular(lower.flip(0, 1), one, upper=True))


def gptq(weight: Weight, hessian: Hessian | Order, scheme: WeightScheme, block: int = 128) -> IntWeight:
    """A weight matrix on the same grid as `round_to_nearest`, with integers that suit each other.

    Each column's weights are rounded; the columns after it move by the error times a row of U over its diagonal, which
    is what makes the error of the outputs least. Inside a block this is done at once, for all columns behind the
    block when it is done: the same sums in fewer passes over the matrix.

    The error is, in the norm of the damped Hessian, the sum of (w - q)² / U_jj² over the rounded columns j as they were
    then. 1 / U_jj² is what is left of H_jj when the columns after j are free to make up for it, and never more than
    H_jj, which rounding to nearest pays (its mixed terms are 0 on average). So over many rows GPTQ has the smaller
    error; a single row can be unlucky, and so can one whose moved weights leave the grid.

    Args:
        weight: finite numbers.
        hessian: X^T X / n of the layer's inputs, or what `rounding_order` made of it.
        scheme: of the integers.
        block: columns.

    Raises:
        ValueError: as `fit_grid` and `rounding_order`.
    """
    grid = fit_grid(weight, scheme)
    order = hessian if isinstance(hessian, Order) else rounding_order(hessian, scheme)
    width, groups = weight.shape[1], grid.scale.shape[1]
    # Columns become rows, which lie in one piece.
    group = order.columns // (width // groups)
    scale = grid.scale.double().T[group]  # (inputs, outputs)
    zero = torch.zeros_like(scale) if grid.zero_point is None else grid.zero_point.double().T[group]
    rest, factor = weight.double().T[order.columns], order.factor
    numbers = torch.empty_like(rest)
    for start in range(0, width, block):
        end = min(start + block, width)
        errors = torch.empty_like(rest[start:end])
        for j in range(start, end):
            numbers[j] = (rest[j] / scale[j] + zero[j]).clamp_(scheme.lowest, scheme.highest).round_()
            error = (rest[j] - (numbers[j] - zero[j]) * scale[j]) / factor[j, j]
            rest[j:end] -= factor[j, j:end, None] * error
            errors[j - start] = error
        rest[end:] -= factor[start:end, end:].T @ errors
    back = order.columns.argsort()
    return IntWeight(numbers[back].T.to(torch.int8).contiguous(), grid)
