import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_data.rows.naive import best_fit_naive, next_fit_naive
from llm_data.rows.packing import PACKINGS, best_fit, next_fit, padded_slots, plan_rows

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(np.array)
CONTEXT = st.integers(2, 16)


@given(LENGTHS, CONTEXT, st.sampled_from(PACKINGS), st.integers(0, 3))
def test_every_token_lies_in_one_row(lengths, context, packing, seed):
    rows = plan_rows(lengths, context, packing, seed)
    seen = [np.zeros(length, dtype=int) for length in lengths]
    for document, start, length in zip(rows.document, rows.start, rows.length, strict=True):
        assert length >= 1
        seen[document][start : start + length] += 1
    assert all((counts == 1).all() for counts in seen)
    assert rows.lengths.max() <= context
    assert rows.lengths.sum() == lengths.sum()
    assert rows.first[0] == 0 and rows.first[-1] == len(rows.length) and (np.diff(rows.first) > 0).all()


@given(LENGTHS, CONTEXT, st.sampled_from(PACKINGS))
def test_what_is_cut(lengths, context, packing):
    rows = plan_rows(lengths, context, packing)
    pieces = np.bincount(rows.document, minlength=len(lengths))
    if packing == "concat":
        assert (rows.lengths[:-1] == context).all()
    else:
        assert (pieces == -(-lengths // context)).all()
    if packing in ("static", "dynamic", "bucketed"):
        assert (np.diff(rows.first) == 1).all()


@given(LENGTHS.map(lambda lengths: np.minimum(lengths, 16)))
def test_next_fit_is_the_short_one(lengths):
    assert next_fit(lengths, 16).tolist() == next_fit_naive(lengths.tolist(), 16)


@given(LENGTHS, st.integers(40, 60))
def test_best_fit_leaves_the_rooms_that_a_search_over_all_rows_leaves(lengths, context):
    # Which of several rows with the same room it is changes no row's size.
    row, expected = best_fit(lengths, context), best_fit_naive(lengths.tolist(), context)
    assert sorted(np.bincount(row, weights=lengths)) == sorted(np.bincount(expected, weights=lengths))


def test_best_fit_by_hand():
    # Longest first: 7 opens a row and leaves 3, so 3 goes there; 6 and 4 fill the next.
    row = best_fit(np.array([3, 4, 6, 7]), 10)
    assert row.tolist() == [0, 1, 1, 0]


@given(LENGTHS, CONTEXT)
def test_the_plan_depends_on_the_seed_alone(lengths, context):
    for packing in PACKINGS:
        one, two = plan_rows(lengths, context, packing, 5), plan_rows(lengths, context, packing, 5)
        assert (one.document == two.document).all() and (one.start == two.start).all()
    many = np.full(50, 3)
    assert (plan_rows(many, 4, "static", 0).document != plan_rows(many, 4, "static", 1).document).any()


def test_padded_slots_by_hand():
    rows = plan_rows(np.array([2, 5, 9]), 10, "static")
    order = np.argsort(rows.lengths)  # 2, 5, 9
    batches = [order[:2], order[2:]]
    assert padded_slots(rows, batches) == 8 + 5 + 1
    tight = plan_rows(np.array([2, 5, 9]), 10, "dynamic")
    assert padded_slots(tight, [np.argsort(tight.lengths)[:2], np.argsort(tight.lengths)[2:]]) == 3


@pytest.mark.parametrize(
    ("lengths", "context", "packing", "message"),
    [
        ([3], 8, "tight", "choose one of static"),
        ([3], 1, "static", "context=1: .* at least 2"),
        ([], 8, "static", "at least one document"),
        ([3, 0], 8, "static", "none of length 0"),
    ],
)
def test_refused(lengths, context, packing, message):
    with pytest.raises(Exception, match=message) as caught:
        plan_rows.__wrapped__(np.array(lengths), context, packing)  # beneath the run-time check of types
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("packing", PACKINGS)
def test_memory_does_not_grow_with_the_context(packing):
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    tracemalloc.start()
    for context in (1000, 10**9):
        rows = plan_rows(lengths, context, packing)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 and rows.lengths.sum() == lengths.sum()
    with pytest.raises(
        ValueError, match=r"context=1000000000000000000000000000000: a row has at most .* lower context"
    ):
        plan_rows(lengths, 10**30, packing)
