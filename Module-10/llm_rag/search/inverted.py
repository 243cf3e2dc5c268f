"""An inverted file: vectors in lists, one for each centroid, of which a query reads the nearest few.

Sivic and Zisserman 2003; Johnson, Douze and Jegou 2019, section 2.3. With n vectors in nlist lists a query compares
nlist centroids and about n * nprobe / nlist vectors.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from llm_rag.search.exact import ExactIndex, exact_bytes
from llm_rag.search.vectors import Found, Metric, Vectors, best, checked_metric, compared, filled, prepared


def inverted_bytes(number: int, dim: int, nlist: int, item_bytes: int = 4) -> int:
    """Bytes of an inverted file: the vectors, 8 of each id, and the centroids."""
    return exact_bytes(number, dim, item_bytes) + 8 * number + exact_bytes(nlist, dim, item_bytes)


def kmeans(
    vectors: Vectors, nlist: int, iterations: int = 10, seed: int = 0, spherical: bool = False
) -> Float[Tensor, "nlist dim"]:
    """Centroids by Lloyd's algorithm, from vectors that the seed draws. Lloyd 1982.

    A centroid that no vector is nearest to moves to the vector that is furthest from its own.

    Args:
        vectors: at least `nlist`.
        nlist: centroids.
        iterations: of assigning and averaging.
        seed: of the first centroids.
        spherical: make centroids one long, as cosines want them.

    Raises:
        ValueError: for fewer vectors than centroids.
    """
    number = len(vectors)
    if not 1 <= nlist <= number:
        raise ValueError(f"nlist={nlist} must be from 1 to {number}, the vectors to learn from")
    drawn = torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:nlist]
    centroids = vectors[drawn.to(vectors.device)].clone()
    for _ in range(iterations):
        far, nearest = (each[:, 0] for each in nearest_of(vectors, centroids, "l2", 1))
        counts = torch.bincount(nearest, minlength=nlist)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, vectors)
        centroids = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        centroids[empty] = vectors[far.argsort(descending=True)[: len(empty)]]
        if spherical:
            centroids = torch.nn.functional.normalize(centroids)
    return centroids


class InvertedFile:
    """Vectors in lists, as `faiss.IndexIVFFlat`.

    Args:
        centroids: one for each list, as of `kmeans`.
        metric: "ip", "cosine" or "l2", which also says which list a vector is in.
        nprobe: lists that a query reads; may be set anew at any time.

    Raises:
        ValueError: for an unknown metric, and as `prepared`.
    """

    def __init__(self, centroids: Float[Tensor, "nlist dim"], metric: str, nprobe: int = 1) -> None:
        self.metric: Metric = checked_metric(metric)
        self.centroids = prepared(centroids, self.metric)
        self.nlist, self.dim = self.centroids.shape
        self.nprobe = nprobe
        self.vectors = self.centroids[:0]  # all, in the order of their ids
        self.list_of = torch.empty(0, dtype=torch.long, device=centroids.device)
        self.lists: list[Tensor] = [self.list_of] * self.nlist

    def __len__(self) -> int:
        """Vectors."""
        return len(self.vectors)

    @property
    def nbytes(self) -> int:
        """Bytes of vectors, ids in lists, and centroids."""
        return self.vectors.nbytes + sum(each.nbytes for each in self.lists) + self.centroids.nbytes

    def add(self, vectors: Vectors) -> None:
        """Take vectors in, each into the list of its nearest centroid. Raises as `prepared`."""
        new = prepared(vectors, self.metric, self.dim)
        self.vectors = torch.cat([self.vectors, new])
        self.list_of = torch.cat([self.list_of, nearest_of(new, self.centroids, self.metric, 1)[1][:, 0]])
        order = self.list_of.argsort(stable=True)
        self.lists = list(order.split(torch.bincount(self.list_of, minlength=self.nlist).tolist()))

    def search(self, queries: Vectors, k: int) -> Found:
        """The k nearest of each query among those in its `nprobe` nearest lists; as `ExactIndex.search`.

        Raises:
            ValueError: for k below 1, an nprobe that is not from 1 to the number of lists, and as `prepared`.
        """
        if k < 1:
            raise ValueError(f"k={k} must be at least 1")
        if not 1 <= self.nprobe <= self.nlist:
            raise ValueError(f"nprobe={self.nprobe} must be from 1 to {self.nlist}, the number of lists")
        queries = prepared(queries, self.metric, self.dim)
        probed = nearest_of(queries, self.centroids, self.metric, self.nprobe)[1]
        rows = []
        for query, chosen in zip(queries, probed.tolist(), strict=True):
            ids = torch.cat([self.lists[place] for place in chosen]).sort().values
            values = compared(query[None], self.vectors[ids], self.metric)
            found = best(values, ids[None], k, self.metric) if len(ids) else (values, ids[None])
            rows.append(filled(*found, k, self.metric))
        values, ids = (torch.cat(each) for each in zip(*rows, strict=True))
        return values, ids

    def share_read(self, queries: Vectors) -> float:
        """Mean share of all vectors that a query is compared with."""
        queries = prepared(queries, self.metric, self.dim)
        sizes = torch.tensor([len(each) for each in self.lists], device=queries.device)
        probed = nearest_of(queries, self.centroids, self.metric, self.nprobe)[1]
        return float(sizes[probed].sum(1).float().mean()) / len(self)


def nearest_of(queries: Tensor, vectors: Tensor, metric: Metric, k: int) -> tuple[Tensor, Tensor]:
    """Exact search among vectors that are prepared already."""
    index = ExactIndex(vectors.shape[1], "ip" if metric == "cosine" else metric)
    index.vectors = vectors
    return index.search(queries, k)
