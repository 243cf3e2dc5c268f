"""The loader of one thread: same batches, bounded, honest about errors, and gone when nobody listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from llm_data.stalls.prefetch import prefetched
from llm_data.stalls.starvation import feed, measured_step_time, simulate


def slow(seconds: list[float], made: list[int] | None = None) -> Iterator[int]:
    for number, load in enumerate(seconds):
        time.sleep(load)
        if made is not None:
            made.append(number)
        yield number


def running() -> int:
    return threading.active_count()


@pytest.mark.parametrize("depth", [1, 2, 50])
@pytest.mark.parametrize("number", [0, 1, 20])
def test_the_same_batches_in_the_same_order(depth: int, number: int) -> None:
    assert list(prefetched(range(number), depth)) == list(range(number))
    assert list(prefetched([None, object, 0], depth)) == [None, object, 0]  # nothing that is a batch ends it


@pytest.mark.parametrize("depth", [1, 3])
def test_it_works_ahead_and_not_further(depth: int) -> None:
    made: list[int] = []
    batches = prefetched(slow([0.0] * 30, made), depth)
    for taken in range(1, 6):
        next(batches)
        time.sleep(0.05)
        assert len(made) == taken + depth + 1


def test_an_error_comes_where_its_batch_would() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    seen = []
    with pytest.raises(KeyError, match="third"):
        for batch in prefetched(broken(), 5):
            seen.append(batch)
    assert seen == [1, 2]


@pytest.mark.parametrize("depth", [1, 4])
def test_who_stops_early_leaves_no_thread(depth: int) -> None:
    before = running()
    batches = prefetched(slow([0.001] * 10_000), depth)
    next(batches)
    assert running() == before + 1
    batches.close()
    deadline = time.perf_counter() + 5
    while running() > before and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert running() == before


def test_a_step_takes_what_the_simulator_says() -> None:
    pattern = [0.1 if k % 5 == 4 else 0.002 for k in range(16)]
    for depth in (1, 4):
        seen = measured_step_time(feed(prefetched(slow(pattern), depth), lambda batch: time.sleep(0.02)), skip=0)
        expected = measured_step_time(simulate(pattern, [0.02] * 16, 1, depth + 1), skip=0)
        assert expected <= seen < 1.6 * expected


def test_a_depth_without_places_is_refused() -> None:
    with pytest.raises(ValueError, match="depth=0"):
        next(prefetched([1], 0))
