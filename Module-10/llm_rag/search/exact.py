"""Exact search: every query against every vector, in blocks, so that memory does not grow with either."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_rag.search.vectors import Found, Vectors, best, checked_metric, compared, filled, prepared

BLOCK = 8192


def exact_bytes(number: int, dim: int, item_bytes: int = 4) -> int:
    """Bytes of `number` vectors, which one query reads all."""
    return number * dim * item_bytes


class ExactIndex:
    """Vectors and their nearest, as `faiss.IndexFlat`.

    Args:
        dim: numbers of a vector.
        metric: "ip", "cosine" (the inner product of vectors that are made one long), or "l2". There is no default: on
            vectors of any length the three give three rankings.

    Raises:
        ValueError: for a dim below 1 or an unknown metric.
    """

    def __init__(self, dim: int, metric: str) -> None:
        if dim < 1:
            raise ValueError(f"dim={dim} must be at least 1")
        self.dim, self.metric = dim, checked_metric(metric)
        self.vectors = torch.empty(0, dim)

    def __len__(self) -> int:
        """Vectors."""
        return len(self.vectors)

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return self.vectors.nbytes

    def add(self, vectors: Vectors) -> None:
        """Take vectors in; their ids go on from the last. Raises as `prepared`."""
        new = prepared(vectors, self.metric, self.dim)
        self.vectors = torch.cat([self.vectors.to(new.device, new.dtype), new])

    def search(self, queries: Vectors, k: int) -> Found:
        """The k nearest of each query, best first, of equal ones the lower id.

        Returns:
            Inner products, cosines or squared distances, and ids; -1 where there are fewer than k.

        Raises:
            ValueError: for k below 1, and as `prepared`.
        """
        if k < 1:
            raise ValueError(f"k={k} must be at least 1")
        queries = prepared(queries, self.metric, self.dim).to(self.vectors.dtype)
        parts = [self._one_block(part, k) for part in queries.split(256)]
        values, ids = (torch.cat(each) for each in zip(*parts, strict=True))
        return filled(values, ids, k, self.metric)

    def _one_block(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        number = len(queries)
        values = torch.empty(number, 0, dtype=queries.dtype, device=queries.device)
        ids = torch.empty(number, 0, dtype=torch.long, device=queries.device)
        for start in range(0, len(self), BLOCK):
            block = self.vectors[start : start + BLOCK]
            new = torch.arange(start, start + len(block), device=queries.device).expand(number, -1)
            values = torch.cat([values, compared(queries, block, self.metric)], dim=1)
            values, ids = best(values, torch.cat([ids, new], dim=1), k, self.metric)
        return values, ids
