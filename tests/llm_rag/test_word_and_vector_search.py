"""BM25, exact search, inverted file and fusion, each equal to a kept library or to its formula."""

from __future__ import annotations

import math
import re

import faiss
import numpy as np
import pytest
import torch
from llm_rag.evaluate import gain, hits, mean, rank_of, retrieval
from llm_rag.pairs import library_pairs, pairs_of, split
from llm_rag.search.bm25 import BM25, words_of
from llm_rag.search.exact import BLOCK, ExactIndex, exact_bytes
from llm_rag.search.fusion import reciprocal_rank_fusion
from llm_rag.search.inverted import InvertedFile, inverted_bytes, kmeans
from rank_bm25 import BM25Okapi

KINDS = {"ip": faiss.METRIC_INNER_PRODUCT, "cosine": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}


@pytest.fixture(scope="module")
def pairs():
    return library_pairs()


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(3000, 24, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 3000)[:, None]


@pytest.fixture(scope="module")
def queries():
    return torch.randn(50, 24, generator=torch.Generator().manual_seed(1))


def test_bm25_is_that_of_rank_bm25(pairs):
    documents = [words_of(pair.code) for pair in pairs[:600]]
    theirs, ours = BM25Okapi(documents), BM25(documents)
    for pair in pairs[:60]:
        query = words_of(pair.docstring)
        np.testing.assert_allclose(ours.scores(query), theirs.get_scores(query), rtol=0, atol=1e-10)
    common = BM25([["a"], ["a"], ["a", "b"]])  # "a" is in most: the floor holds
    np.testing.assert_allclose(common.scores(["a", "b"]), BM25Okapi([["a"], ["a"], ["a", "b"]]).get_scores(["a", "b"]))


def test_bm25_is_that_of_fts5(pairs):
    import apsw

    base = apsw.Connection(":memory:")
    base.execute("CREATE VIRTUAL TABLE words USING fts5(text, tokenize='unicode61 remove_diacritics 0')")
    codes = [pair.code for pair in pairs[:300]]
    for number, code in enumerate(codes):
        base.execute("INSERT INTO words(rowid, text) VALUES (?, ?)", (number, code))
    ours = BM25([words_of(code) for code in codes], k1=1.2, b=0.75, idf="fts5")
    for pair in pairs[:30]:
        query = words_of(pair.docstring)
        found = {hit.id: hit.score for hit in ours.search(query, 300)}
        theirs = dict(base.execute("SELECT rowid, -bm25(words) FROM words WHERE words MATCH ?",
                                   (" OR ".join(f'"{word}"' for word in query),)))  # fmt: skip
        assert found == pytest.approx(theirs, abs=1e-9)


def test_bm25_by_its_formula_and_its_limits():
    index = BM25([["cat", "cat", "dog"], ["dog"], ["fish", "cat"]], k1=1.0, b=0.5, idf="lucene")
    idf = math.log(1 + 1.5 / 2.5)
    assert index.scores(["cat"])[0] == pytest.approx(idf * 2 * 2 / (2 + 0.5 + 0.5 * 3 / 2))
    assert [hit.id for hit in index.search(["cat", "nowhere"], 9)] == [0, 2] and index.search(["nowhere"], 3) == []
    assert [hit.id for hit in BM25([["x"], ["x"], ["y"]], idf="lucene").search(["x"], 2)] == [
        0,
        1,
    ]  # equal: the lower id
    assert BM25([[], []]).search([], 1) == []
    for wrong, options in (
        ("no documents", {"documents": []}), ("a list of words", {"documents": ["text"]}),
        ("k1=-1", {"documents": [["a"]], "k1": -1}), ("idf='x'", {"documents": [["a"]], "idf": "x"}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=wrong):
            BM25(**options)
    with pytest.raises(ValueError, match="k=0"):
        index.search(["cat"], 0)


@pytest.mark.parametrize("metric", KINDS)
def test_exact_search_is_that_of_faiss(metric, vectors, queries):
    ours = ExactIndex(24, metric)
    for part in vectors.split(700):
        ours.add(part)
    theirs = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(24)
    unit = torch.nn.functional.normalize if metric == "cosine" else lambda x: x
    theirs.add(unit(vectors).numpy())
    wanted, ids = theirs.search(unit(queries).numpy(), 10)
    values, found = ours.search(queries, 10)
    assert np.array_equal(found.numpy(), ids)
    np.testing.assert_allclose(values.numpy(), wanted, rtol=0, atol=2e-5)  # float32 sums in another order
    assert ours.nbytes == exact_bytes(3000, 24) == 288_000


def test_exact_search_goes_by_blocks_and_breaks_ties_by_id(monkeypatch, vectors, queries):
    whole = ExactIndex(24, "ip")
    whole.add(vectors)
    expected = whole.search(queries, 7)
    monkeypatch.setattr("llm_rag.search.exact.BLOCK", 100)
    values, ids = whole.search(queries, 7)
    assert torch.equal(ids, expected[1]) and torch.allclose(values, expected[0], atol=1e-5) and BLOCK > 100
    same = ExactIndex(2, "ip")
    same.add(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(150, 1))
    assert same.search(torch.tensor([[1.0, 0.0]]), 5)[1].tolist() == [[0, 2, 4, 6, 8]]
    assert same.search(torch.tensor([[1.0, 0.0]]), 155)[1][0, 149:].tolist() == [298, 1, 3, 5, 7, 9]


@pytest.mark.parametrize("metric", KINDS)
def test_an_inverted_file_is_that_of_faiss_given_the_same_centroids(metric, vectors, queries):
    unit = torch.nn.functional.normalize if metric == "cosine" else lambda x: x
    centroids = kmeans(unit(vectors), 20, spherical=metric == "cosine")
    ours = InvertedFile(centroids, metric, nprobe=4)
    for part in vectors.split(1100):
        ours.add(part)
    quantiser = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(24)
    quantiser.add(centroids.numpy())
    theirs = faiss.IndexIVFFlat(quantiser, 24, 20, KINDS[metric])
    theirs.is_trained, theirs.nprobe = True, 4
    theirs.add(unit(vectors).numpy())
    wanted, ids = theirs.search(unit(queries).numpy(), 10)
    values, found = ours.search(queries, 10)
    assert np.array_equal(found.numpy(), ids)
    np.testing.assert_allclose(values.numpy(), wanted, rtol=0, atol=2e-5)
    assert [len(each) for each in ours.lists] == [theirs.invlists.list_size(number) for number in range(20)]
    assert ours.nbytes == inverted_bytes(3000, 24, 20) == 288_000 + 24_000 + 1_920
    ours.nprobe = 20
    exact = ExactIndex(24, metric)
    exact.add(vectors)
    assert torch.equal(ours.search(queries, 10)[1], exact.search(queries, 10)[1])
    assert ours.share_read(queries) == 1.0


def test_recall_grows_with_the_lists_that_are_read(vectors, queries):
    exact, ours = ExactIndex(24, "cosine"), InvertedFile(kmeans(vectors, 30, spherical=True), "cosine")
    exact.add(vectors)
    ours.add(vectors)
    right = exact.search(queries, 10)[1]
    recalls = []
    for ours.nprobe in (1, 3, 10, 30):
        found = ours.search(queries, 10)[1]
        recalls.append(float((found[:, :, None] == right[:, None]).any(1).float().mean()))
    assert recalls == sorted(recalls) and recalls[0] < 0.6 and recalls[-1] == 1.0, recalls


def test_centroids_that_nothing_is_near_to_move():
    twice = torch.cat([torch.zeros(50, 2), torch.ones(50, 2), torch.tensor([[9.0, 9.0]])])
    found = kmeans(twice, 3, seed=1)
    assert {tuple(row) for row in found.tolist()} == {(0.0, 0.0), (1.0, 1.0), (9.0, 9.0)}
    assert torch.equal(kmeans(twice, 2, seed=3), kmeans(twice, 2, seed=3))
    with pytest.raises(ValueError, match="nlist=5 must be from 1 to 3"):
        kmeans(torch.randn(3, 2), 5)


def test_fewer_than_k_are_filled_as_faiss_does(vectors):
    index = ExactIndex(24, "ip")
    values, ids = index.search(vectors[:2], 3)
    assert ids.tolist() == [[-1] * 3] * 2 and values.isinf().all()
    index.add(vectors[:2])
    assert index.search(vectors[:1], 5)[1][0, 2:].tolist() == [-1, -1, -1]
    lists = InvertedFile(torch.eye(24)[:4], "l2")
    values, ids = lists.search(vectors[:1], 2)
    assert ids.tolist() == [[-1, -1]] and (values == torch.inf).all()


def test_vectors_that_cannot_be_compared():
    with pytest.raises(TypeError):
        ExactIndex(4)  # a metric is chosen, never a default
    with pytest.raises(ValueError, match="metric='dot' is none of ip, cosine, l2"):
        ExactIndex(4, "dot")
    index = ExactIndex(4, "cosine")
    bad = torch.ones(3, 4)
    bad[1, 2] = torch.nan
    zero = torch.ones(3, 4)
    zero[2] = 0
    for wrong, given in (
        ("vector 1 is not finite", bad),
        ("vector 2 is zero", zero),
        ("of 5 numbers", torch.ones(1, 5)),
    ):
        for call in (index.add, lambda x: index.search(x, 1)):
            with pytest.raises(ValueError, match=wrong):
                call(given)
    with pytest.raises(ValueError, match="k=0"):
        index.search(torch.ones(1, 4), 0)
    lists = InvertedFile(torch.eye(4), "ip")
    lists.nprobe = 5
    with pytest.raises(ValueError, match="nprobe=5 must be from 1 to 4"):
        lists.search(torch.ones(1, 4), 1)


def test_reciprocal_rank_fusion_by_its_formula():
    fused = dict(reciprocal_rank_fusion([["a", "b"], ["b", "c"], ["d"]], weights=[1, 2, 0]))
    assert fused == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 2 / 61, "c": 2 / 62, "d": 0.0})
    assert [item for item, _ in reciprocal_rank_fusion([["a", "b"], ["b", "a"]])] == ["a", "b"]
    assert reciprocal_rank_fusion([]) == []
    for wrong, given in (("twice", ([["a", "a"]],)), ("weights", ([["a"]], 60, [1, 2])), ("k=-1", ([["a"]], -1))):
        with pytest.raises(ValueError, match=wrong):
            reciprocal_rank_fusion(*given)


def test_recall_and_reciprocal_rank():
    assert rank_of("abc", "c") == 3 and rank_of("abc", "d") == 0 and hits([1, 3, 0], 2) == [1.0, 0.0, 0.0]
    found = retrieval([1, 2, 0, 20], k=10)
    assert found.recall.value == 0.5 and found.reciprocal_rank.value == pytest.approx((1 + 0.5 + 0.05) / 4)
    assert 0 <= found.recall.low < 0.5 < found.recall.high <= 1 and found.number == 4
    values = np.random.default_rng(0).random(400)
    interval = mean(values.tolist())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert gain([1, 1, 0, 0] * 9, [1, 1, 1, 0] * 9).value == 0.25
    with pytest.raises(ValueError, match="k=0"):
        hits([1], 0)


def test_pairs_of_the_library(pairs):
    assert 3000 < len(pairs) < 6000 and pairs == library_pairs()
    assert len({pair.docstring for pair in pairs}) == len({pair.code for pair in pairs}) == len(pairs)
    train, test = split(pairs)
    assert not {pair.module for pair in train} & {pair.module for pair in test} and 0.1 < len(test) / len(pairs) < 0.3
    for pair in pairs[:200]:
        assert pair.name == "f" or not re.search(rf"\b{pair.name}\b", pair.hidden)
        assert f"def {pair.name}(" in pair.code and "def f(" in pair.hidden
    told = '"""Give the factorial of a whole number, slowly.\n\n        More."""'
    source = (
        f"class A:\n    @cache\n    def fact(self, n):\n        {told}\n        return self.fact(n - 1) * n  # slow\n"
    )
    (pair,) = pairs_of(source)
    assert pair.docstring == "Give the factorial of a whole number, slowly."
    assert pair.hidden == "def f(self, n):\n    return self.f(n - 1) * n"
    assert list(pairs_of("def broken(:")) == []
