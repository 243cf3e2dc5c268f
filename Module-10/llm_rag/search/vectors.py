"""What all search by vectors shares: metrics, checks, and the best k with a rule for ties."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

Metric = Literal["ip", "cosine", "l2"]
Vectors = Float[Tensor, "number dim"]
Found = tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]
NOTHING = -1  # the id where fewer than k were found, as faiss has it


def checked_metric(metric: str) -> Metric:
    """The metric.

    Raises:
        ValueError: when there is none of that name.
    """
    for name in get_args(Metric):
        if metric == name:
            return name
    raise ValueError(f"metric={metric!r} is none of {', '.join(get_args(Metric))}")


def prepared(vectors: Vectors, metric: Metric, dim: int | None = None) -> Vectors:
    """Vectors as the metric compares them: of length 1 for "cosine", else as they are.

    Raises:
        ValueError: for no vectors, another width than `dim`, a value that is not finite, and under "cosine" a vector of
            length 0, which has no direction.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"vectors of shape {tuple(vectors.shape)}; give a matrix with a row for each, one at least")
    if dim is not None and vectors.shape[1] != dim:
        raise ValueError(f"vectors of {vectors.shape[1]} numbers in an index of {dim}; take the encoder it was made by")
    finite = vectors.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(f"vector {int((~finite).nonzero()[0])} is not finite; mend what made it")
    if metric != "cosine":
        return vectors
    lengths = vectors.norm(dim=1, keepdim=True)
    if not (lengths > 0).all():
        raise ValueError(f"vector {int((lengths[:, 0] == 0).nonzero()[0])} is zero and has no cosine; leave it out")
    return vectors / lengths


def compared(queries: Vectors, vectors: Float[Tensor, "others dim"], metric: Metric) -> Float[Tensor, "number others"]:
    """Inner products, or squared distances under "l2", of prepared vectors."""
    products = queries @ vectors.T
    if metric != "l2":
        return products
    # |q - v|^2 = |q|^2 - 2 q v + |v|^2, which rounding may bring below 0
    return (queries.pow(2).sum(1)[:, None] - 2 * products + vectors.pow(2).sum(1)).clamp(min=0)


def best(
    values: Float[Tensor, "queries others"], ids: Int[Tensor, "queries others"], k: int, metric: Metric
) -> tuple[Tensor, Tensor]:
    """The best k of each row with their ids, best first; of equal ones the lower id.

    Args:
        values: as of `compared`.
        ids: of the values, in any order, none twice in a row.
        k: fewer where there are fewer columns.
    """
    sign = 1.0 if metric == "l2" else -1.0
    k = min(k, values.shape[1])
    keys = values * sign  # the smallest are wanted
    order = keys.topk(k, largest=False).indices
    chosen = keys.gather(1, order)
    # topk takes any of several equal ones: where that could matter the row is sorted whole.
    last = chosen[:, -1:]
    unsure = (keys == last).sum(1) > (chosen == last).sum(1)
    if unsure.any():
        by_id = ids[unsure].argsort(dim=1)
        places = keys[unsure].gather(1, by_id).argsort(dim=1, stable=True)[:, :k]
        order[unsure] = by_id.gather(1, places)
    by_id = order.gather(1, ids.gather(1, order).argsort(dim=1))
    by_key = by_id.gather(1, keys.gather(1, by_id).argsort(dim=1, stable=True))
    return values.gather(1, by_key), ids.gather(1, by_key)


def filled(values: Tensor, ids: Tensor, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """k columns: where fewer were found the id is -1 and the value the worst there is."""
    missing = k - ids.shape[1]
    if missing <= 0:
        return values, ids
    worst = torch.inf if metric == "l2" else -torch.inf
    pad = torch.nn.functional.pad
    return pad(values, (0, missing), value=worst), pad(ids, (0, missing), value=NOTHING)
