"""The ring is the library's collective, and sends the bytes of its formula."""

import parallel_jobs as jobs
import pytest
import torch
from llm_scale.ranks import RankError

# Bytes that each of N ranks sends, of a tensor of P bytes on every rank.
FORMULAS = {
    "all_reduce": lambda P, N: 2 * (N - 1) / N * P,
    "reduce_scatter": lambda P, N: (N - 1) / N * P,
    "all_gather": lambda P, N: (N - 1) * P,
    "naive_all_reduce": lambda P, N: (N - 1) * P,
}


@pytest.mark.parametrize("size", ["two", "four"])
@pytest.mark.parametrize("name", FORMULAS)
def test_ring_and_library(name, size, request):
    ranks = request.getfixturevalue(size)
    for ours, library, sent in ranks.run(jobs.collective, name, (8, 3)):
        torch.testing.assert_close(ours, library, atol=1e-6, rtol=0)  # sums in another order
        assert sent == FORMULAS[name](8 * 3 * 4, ranks.size)


def test_broadcast(four):
    results = four.run(jobs.collective, "broadcast", (5,))
    assert all(torch.equal(ours, library) for ours, library, _ in results)
    assert [sent for *_, sent in results] == [0, 20, 20, 20]  # the last of the line, rank 0, sends nothing


def test_a_length_that_does_not_divide(four):
    for ours, library, _ in four.run(jobs.collective, "all_reduce", (7,)):
        torch.testing.assert_close(ours, library, atol=1e-6, rtol=0)
    with pytest.raises(RankError, match="no 4 equal parts"):
        four.run(jobs.collective, "reduce_scatter", (7,))


def by_older_names() -> list[torch.Tensor]:
    """A rank's part of a sum, and all parts, where torch has not the names of 2.13."""
    import torch.distributed as dist
    from llm_scale.collectives import LIBRARY

    newer = {name: getattr(dist, name) for name in ("reduce_scatter_single", "all_gather_single")}
    for name in newer:
        delattr(dist, name)
    try:
        part = LIBRARY.reduce_scatter(torch.arange(4.0) + dist.get_rank())
        return [part, LIBRARY.all_gather(part)]
    finally:
        for name, function in newer.items():
            setattr(dist, name, function)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_an_older_torch(two):
    for rank, (part, whole) in enumerate(two.run(by_older_names)):
        total = 2 * torch.arange(4.0) + 1
        assert torch.equal(part, total.chunk(2)[rank]) and torch.equal(whole, total)
