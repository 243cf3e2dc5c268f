"""The formulas, the simulator against a second one that shares no line with it, real loaders, and the trace reader."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_data.stalls import starvation, traces
from llm_data.stalls.starvation import NoisyDataset, SlowDataset, Step, feed, simulate
from llm_data.stalls.traces import Span
from torch.profiler import record_function
from torch.utils.data import DataLoader

TICKS = st.integers(0, 6)


def by_ticking(loads: list[int], computes: list[int], workers: int, prefetch_factor: int) -> list[tuple[int, int]]:
    """Delivery and end of each step, by moving a clock one tick at a time over real queues. Integer times only.

    Within a tick everything that takes no time is repeated until nothing moves.
    """
    queues: list[list[int]] = [[] for _ in range(workers)]
    left: list[int | None] = [None] * workers  # ticks that each worker still needs for the first batch in its queue
    made: set[int] = set()
    sent = got = clock = 0
    busy_until = 0
    delivered: list[tuple[int, int]] = []
    for _ in range(min(workers * prefetch_factor, len(loads))):
        queues[sent % workers].append(sent)
        sent += 1
    while got < len(loads):
        moved = True
        while moved:
            moved = False
            for worker, queue in enumerate(queues):
                if left[worker] is None and queue:
                    left[worker] = loads[queue[0]]
                    moved = True
                if left[worker] == 0:
                    made.add(queue.pop(0))
                    left[worker] = None
                    moved = True
            if got < len(loads) and busy_until <= clock and got in made:
                busy_until = clock + computes[got]
                delivered.append((clock, busy_until))
                got += 1
                if sent < len(loads):
                    queues[sent % workers].append(sent)
                    sent += 1
                moved = True
        clock += 1
        for worker in range(workers):
            ticks = left[worker]
            if ticks is not None:
                left[worker] = ticks - 1
    return delivered


@given(st.lists(st.tuples(TICKS, TICKS), max_size=14), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_the_simulator_equals_one_that_ticks(times: list[tuple[int, int]], workers: int, prefetch: int) -> None:
    loads, computes = [load for load, _ in times], [compute for _, compute in times]
    steps = simulate(loads, computes, workers, prefetch)
    assert [(step.delivered, step.done) for step in steps] == by_ticking(loads, computes, workers, prefetch)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 6), st.integers(1, 4), st.integers(0, 40))
@settings(deadline=None)
def test_constant_times_meet_the_closed_form(load: int, compute: int, workers: int, prefetch: int, count: int) -> None:
    steps = simulate([load] * count, [compute] * count, workers, prefetch)
    total = starvation.total_time(load, compute, workers, count)
    assert math.isclose(steps[-1].done if steps else 0.0, total, abs_tol=1e-9)


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 5), st.integers(1, 3))
@settings(deadline=None)
def test_the_steady_state_meets_the_step_and_the_share(load: int, compute: int, workers: int, prefetch: int) -> None:
    count = 12 * max(workers, 1) + 1  # whole rounds of the workers
    steps = simulate([load] * count, [compute] * count, workers, prefetch)
    step = starvation.step_time(load, compute, workers)
    assert math.isclose(starvation.measured_step_time(steps, skip=0), step, rel_tol=1e-9)
    share = starvation.measured_waiting_share(steps, skip=0)
    assert math.isclose(share, starvation.waiting_share(load, compute, workers), abs_tol=1e-9)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=30), st.integers(1, 4))
@settings(deadline=None)
def test_a_deeper_queue_never_hurts_and_no_queue_beats_the_bounds(
    times: list[tuple[float, float]], workers: int
) -> None:
    loads, computes = [load for load, _ in times], [compute for _, compute in times]
    ends = [simulate(loads, computes, workers, prefetch)[-1].done for prefetch in (1, 2, 3, 30)]
    assert all(deeper <= end + 1e-9 for end, deeper in itertools.pairwise(ends))
    fed_by_one = [sum(loads[worker::workers]) for worker in range(workers)]
    assert ends[-1] >= max(sum(computes), *fed_by_one) - 1e-9
    assert ends[0] <= simulate(loads, computes, 0)[-1].done + 1e-9


@given(st.floats(0.1, 90), st.floats(0.1, 90), st.integers(1, 8))
@settings(deadline=None)
def test_more_workers_never_hurt_when_times_are_constant(load: float, compute: float, workers: int) -> None:
    ends = [simulate([load] * 30, [compute] * 30, count)[-1].done for count in (workers, workers + 1)]
    assert ends[1] <= ends[0] + 1e-9


@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from([1, 0.001, 0.01, 0.3]))
@settings(deadline=None)
def test_break_even_is_the_smallest_number_that_never_waits(load: int, compute: int, unit: float) -> None:
    workers = starvation.break_even_workers(load * unit, compute * unit)
    assert workers == -(-load // compute)  # exact in integers, whatever the unit
    if workers > 1:
        assert (
            starvation.step_time(load, compute, workers) == compute < starvation.step_time(load, compute, workers - 1)
        )


def test_break_even_forgives_what_floats_add() -> None:
    assert 0.07 / 0.01 > 7
    assert starvation.break_even_workers(0.07, 0.01) == 7
    assert starvation.break_even_workers(0.070001, 0.01) == 8


def test_the_lesson_s_hand_example() -> None:
    ends = [[step.done for step in simulate([3] * 4, [2] * 4, workers)] for workers in (0, 1, 2)]
    assert ends == [[5, 10, 15, 20], [5, 8, 11, 14], [5, 7, 9, 11]]
    assert [starvation.total_time(3, 2, workers, 4) for workers in (0, 1, 2)] == [20, 14, 11]
    with_one = simulate([3] * 4, [2] * 4, 1)
    assert [(s.asked, s.load_start, s.ready, s.delivered, s.worker) for s in with_one[:2]] == [
        (0, 0, 3, 3, 0),
        (5, 3, 6, 6, 0),
    ]
    assert [step.worker for step in simulate([3] * 4, [2] * 4, 0)] == [starvation.MAIN_PROCESS] * 4


def test_one_slow_batch_blocks_those_behind_it() -> None:
    steps = simulate([1, 9, 1, 1], [1] * 4, workers=2, prefetch_factor=2)
    assert steps[2].ready == 2  # made by the other worker long before,
    assert [step.delivered for step in steps] == [1, 9, 10, 11]  # delivered in order


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_queue_absorbs_a_slow_batch_as_deep_as_it_is(workers: int) -> None:
    slow, fast, compute, every = 120, 4, 20, 12
    loads = [slow if k % every == every - 1 else fast for k in range(10 * every)]
    for prefetch in range(1, 9):
        steps = simulate(loads, [compute] * len(loads), workers, prefetch)
        stall = max(0, slow - prefetch * workers * compute)
        assert sum(step.wait for step in steps[1:]) == 10 * stall


@pytest.mark.parametrize("workers", [0, 2])
def test_a_real_loader_keeps_order_and_meets_the_simulator(workers: int) -> None:
    loads = [0.04, 0.12, 0.04, 0.04, 0.04, 0.04]
    seen: list[int] = []

    def compute(batch: Any) -> None:
        seen.append(int(batch))
        time.sleep(0.03)

    steps = feed(DataLoader(SlowDataset(loads), batch_size=None, num_workers=workers), compute)
    assert seen == list(range(6))
    # Sleeps and schedulers only ever add: the end may be late (the start of the workers is in it, which is seconds
    # where they are spawned), never early.
    expected = simulate(loads, [0.03] * 6, workers)[-1].done
    assert expected - 0.005 <= steps[-1].done <= expected + 30
    assert steps[0].asked == 0 and all(a.done == b.asked for a, b in itertools.pairwise(steps))
    assert all(step.asked <= step.delivered < step.done for step in steps)


def test_measured_steps_leave_out_what_they_are_told() -> None:
    steps = [Step(0, 10, 11), Step(11, 12, 14), Step(14, 17, 18)]
    assert starvation.measured_step_time(steps, skip=1) == 5
    assert starvation.measured_waiting_share(steps, skip=1) == 3 / 5
    assert starvation.measured_step_time(steps, skip=0) == 3.5
    for skip in (-1, 2):
        with pytest.raises(ValueError, match="no two deliveries"):
            starvation.measured_step_time(steps, skip)


def test_random_numbers_of_workers() -> None:
    torch.manual_seed(0)
    items = torch.stack(list(DataLoader(NoisyDataset(8), batch_size=None, num_workers=2)))
    distinct = [len(column.unique()) for column in items.T]
    assert distinct == [8, 4, 8]  # torch seeds numpy in each worker; a generator of one's own is copied
    alone = torch.stack(list(DataLoader(NoisyDataset(8), batch_size=None)))
    assert torch.equal(alone[:, 2], items[:, 2])
    assert not torch.equal(alone[:, 1], items[:, 1])
    assert not torch.equal(alone[:, 2], torch.stack([NoisyDataset(8, seed=1)[k] for k in range(8)])[:, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: starvation.step_time(-1, 1, 0), "load: -1 is not a time"),
        (lambda: starvation.step_time(1, math.nan, 0), "compute: nan is not a time"),
        (lambda: starvation.step_time(1, 1, -2), "workers=-2"),
        (lambda: starvation.waiting_share(0, 0, 1), "both 0"),
        (lambda: starvation.break_even_workers(1, 0), "compute=0"),
        (lambda: starvation.total_time(1, 1, 1, -1), "batches=-1"),
        (lambda: simulate([1, 2], [1], 0), "2 loads and 1 computes"),
        (lambda: simulate([1], [math.inf], 0), "computes: inf"),
        (lambda: simulate([1], [1], 1, 0), "prefetch_factor=0"),
        (lambda: simulate([1], [1], -1), "workers=-1"),
        (lambda: SlowDataset([0.1, -0.1]), "seconds: -0.1"),
    ],
)
def test_bad_numbers_are_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def bar(name: str, start: float, end: float, category: str = "", thread: str = "main") -> Span:
    return Span(name, start, end, thread, category)


WAIT = "enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__"
# Three steps of 10 with a first one that is longer; the last wait is the end of the epoch, long, and not a step's.
STEPS = [
    bar(WAIT, 0, 20), bar("forward", 20, 23), bar("backward", 23, 25),
    bar(WAIT, 25, 30), bar("forward", 30, 33), bar("aten::mm", 30, 32, "cpu_op"), bar("backward", 33, 36),
    bar(WAIT, 36, 40), bar("forward", 40, 43), bar("backward", 43, 46),
    bar(WAIT, 46, 50), bar("forward", 50, 53), bar("backward", 53, 56), bar(WAIT, 56, 90),
]  # fmt: skip


def test_the_share_of_a_trace_is_that_of_whole_steady_steps() -> None:
    assert traces.steady_window(STEPS, "forward") == (30, 50)
    assert traces.traced_waiting_share(STEPS, "forward") == 8 / 20
    assert traces.traced_waiting_share(STEPS, "forward", skip=0) == (5 + 4 + 4) / 30
    assert traces.traced_waiting_share(STEPS[::-1], "forward") == 8 / 20
    assert traces.traced_waiting_share(STEPS, "forward", waiting="backward") == 6 / 20
    copies = [bar("forward", span.start + 500, span.end + 500, "gpu_user_annotation") for span in STEPS]
    assert traces.traced_waiting_share([*STEPS, *copies], "forward") == 8 / 20


def test_nested_and_overlapping_spans_count_once() -> None:
    spans = [bar("a", 0, 10), bar("b", 2, 5), bar("c", 8, 14), bar("d", 20, 21), bar("e", 40, 50)]
    assert traces.covered(spans, 0, 30) == 15
    assert traces.covered(spans, 4, 9) == 5
    assert traces.covered(spans, 15, 19) == 0
    assert traces.covered([], 0, 1) == 0


def test_idle_time_of_a_device() -> None:
    kernels = [bar("gemm", 31, 35, "kernel", "gpu"), bar("add", 34, 36, "kernel", "gpu2"), bar("x", 48, 60, "kernel")]
    assert traces.idle_share([*STEPS, *kernels], "forward") == 1 - 7 / 20
    with pytest.raises(ValueError, match="no span of category 'kernel'"):
        traces.idle_share(STEPS, "forward")


def test_traces_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no span is named 'step'"):
        traces.traced_waiting_share(STEPS, "step")
    with pytest.raises(ValueError, match="leaves no whole step"):
        traces.traced_waiting_share(STEPS, "forward", skip=3)


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_a_chrome_trace_is_read(tmp_path: Path, suffix: str) -> None:
    events = [
        {"ph": "X", "name": "late", "ts": 3e6, "dur": 5e5, "pid": 1, "tid": 2, "cat": "cpu_op"},
        {"ph": "X", "name": "early", "ts": 1e6, "dur": 1e6, "pid": 1, "tid": 2},
        {"ph": "i", "name": "instant", "ts": 0},
    ]
    content = json.dumps({"traceEvents": events}).encode()
    path = tmp_path / f"trace{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert traces.read_trace(path) == [Span("early", 0, 1, "1/2", ""), Span("late", 2, 2.5, "1/2", "cpu_op")]


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"a": 1}', '{"traceEvents": [{"ph": "X", "name": "x"}]}', "3"])
def test_what_is_not_a_trace_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"odd\.json is not a Chrome trace"):
        traces.read_trace(path)
    path.write_text('{"traceEvents": []}')
    with pytest.raises(ValueError, match=r"odd\.json holds no event"):
        traces.read_trace(path)


def test_a_recorded_trace_says_what_the_clock_says(tmp_path: Path) -> None:
    def compute(_: Any) -> None:
        with record_function("forward"):
            time.sleep(0.02)

    with traces.recorded_trace(tmp_path / "t.json"):
        steps = feed(DataLoader(SlowDataset([0.02] * 8), batch_size=None), compute)
    spans = traces.read_trace(tmp_path / "t.json")
    share = traces.traced_waiting_share(spans, "forward")
    assert len(traces.named(spans, traces.WAITING)) == 9  # the last call finds that the epoch is over
    # Both read the same run, so load on the machine moves them together.
    assert abs(share - starvation.measured_waiting_share(steps)) < 0.1


def test_recording_a_trace_says_nothing(tmp_path: Path) -> None:
    # In a process of its own: the profiler reads its log level once, and another test may have used it before.
    program = "import sys; from llm_data.stalls.traces import recorded_trace\nwith recorded_trace(sys.argv[1]): pass"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "t.json")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
