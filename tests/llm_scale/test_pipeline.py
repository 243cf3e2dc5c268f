"""Schedules on paper, and the same run: order, bubble, activations kept, losses and gradients of one process."""

from __future__ import annotations

from typing import Any

import pipeline_jobs as jobs
import pytest
from llm_scale.pipeline import schedules
from llm_scale.pipeline.schedules import Work
from llm_scale.ranks import Ranks

# float32 sums in another order: measured 5e-7 on losses of 4, 1e-7 on gradients; a micro-batch left out or counted
# twice, or a mean of means, moves both by more than a hundredth. Five steps of AdamW add some 1e-6 to a loss.
LOSS, GRADIENT = 1e-5, 1e-6


def compact(order: list[Work]) -> str:
    return " ".join(f"{work.kind[0]}{work.micro_batch}" + "'" * work.chunk for work in order)


@pytest.fixture(scope="module")
def alone() -> dict[bool, dict[str, Any]]:
    return {tied: jobs.alone(tied) for tied in (True, False)}


def test_orders_by_hand() -> None:
    assert [compact(order) for order in schedules.orders("gpipe", 2, 2)] == ["f0 f1 b0 b1"] * 2
    assert [compact(order) for order in schedules.orders("1f1b", 3, 4)] == [
        "f0 f1 f2 b0 f3 b1 b2 b3", "f0 f1 b0 f2 b1 f3 b2 b3", "f0 b0 f1 b1 f2 b2 f3 b3",
    ]  # fmt: skip
    # The first of four stages: four micro-batches on its first part, the same on its second, and so on.
    order = compact(schedules.interleaved(0, 4, 8))
    assert order.startswith("f0 f1 f2 f3 f0' f1' f2' f3' f4 f5 f6 b0' f7 b1' ")


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 8, 16])
def test_bubble_and_activations(stages: int, micro_batches: int) -> None:
    predicted = schedules.predicted_bubble(stages, micro_batches)
    for name in ("gpipe", "1f1b"):
        orders = schedules.orders(name, stages, micro_batches)
        for order in orders:  # everything once
            assert sorted(order) == sorted(
                Work(kind, i) for kind in ("forward", "backward") for i in range(micro_batches)
            )
        for times in ((1, 2), (1, 1), (2, 7)):  # the share does not depend on them
            assert schedules.bubble_share(schedules.simulate(orders, *times)) == predicted
        held = [schedules.most_activations(order) for order in orders]
        assert held == [micro_batches if name == "gpipe" else min(stages - s, micro_batches) for s in range(stages)]
    if micro_batches % stages == 0:
        for chunks in (2, 3):
            orders = [schedules.interleaved(s, stages, micro_batches, chunks) for s in range(stages)]
            assert [len(set(order)) for order in orders] == [2 * chunks * micro_batches] * stages
            share = schedules.bubble_share(schedules.simulate(orders))
            assert share == schedules.predicted_bubble(stages, micro_batches, chunks)


def test_the_clock_by_hand() -> None:
    """Two stages, two micro-batches, forward 1, backward 2: 9 units, of which each stage works 6."""
    timeline = schedules.simulate(schedules.orders("1f1b", 2, 2))
    rows = {(piece.stage, piece.kind[0], piece.micro_batch): (piece.start, piece.end) for piece in timeline}
    assert rows == {
        (0, "f", 0): (0, 1), (0, "f", 1): (1, 2), (1, "f", 0): (1, 2), (1, "b", 0): (2, 4), (0, "b", 0): (4, 6),
        (1, "f", 1): (4, 5), (1, "b", 1): (5, 7), (0, "b", 1): (7, 9),
    }  # fmt: skip
    assert schedules.bubble_share(timeline) == 6 / 18


def test_the_slowest_stage_and_messages_lengthen_it() -> None:
    orders = schedules.orders("gpipe", 2, 4)
    slow = schedules.simulate(orders, forward=[1, 2], backward=[2, 4])
    # The second stage waits 1 for its first input, then works 4 x 6; the first ends its last backward 2 later.
    assert max(piece.end for piece in slow) == 1 + 4 * 6 + 2
    late = schedules.simulate(orders, message=0.5)
    assert max(piece.end for piece in late) == 3 * (4 + 1) + 2 * 0.5


def test_a_circle_is_named() -> None:
    early = [[Work("backward", 0), Work("forward", 0)]] * 2
    with pytest.raises(ValueError, match=r"^stage 0 waits for ever before its backward work on micro-batch 0"):
        schedules.simulate(early)
    crossed = [schedules.gpipe(0, 2, 2), [Work("forward", 1), Work("backward", 1)]]
    with pytest.raises(ValueError, match=r"^stage 0 waits for ever before its backward work on micro-batch 0"):
        schedules.simulate(crossed)


def test_what_cannot_be_ordered() -> None:
    with pytest.raises(ValueError, match=r"^schedule='zigzag' is none of gpipe, 1f1b, interleaved$"):
        schedules.orders("zigzag", 2, 2)
    with pytest.raises(ValueError, match=r"^stages=0 and micro_batches=2 must be 1 or more$"):
        schedules.orders("gpipe", 0, 2)
    with pytest.raises(ValueError, match=r"^micro_batches=3 must be a multiple of stages=2 for the interleaved"):
        schedules.orders("interleaved", 2, 3)


def check(ranks: Ranks, alone: Any, *args: Any, **options: Any) -> list[dict[str, Any]]:
    results, reference = ranks.run(jobs.cut, *args, **options), alone[args[0]]
    together: dict[str, Any] = {}
    for result in results:
        assert result["losses"] == pytest.approx(reference["losses"], abs=LOSS, rel=0)
        for name, gradient in result["gradients"].items():
            expected = reference["gradients"].get(
                name, reference["gradients"]["model.embed_tokens.weight"]
            )  # tied head
            assert (gradient - expected).abs().max() < GRADIENT, name
        together |= result["gradients"]
    assert reference["gradients"].keys() <= together.keys()  # every parameter is on some stage
    return results


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("tied", "micro_batches"), [(True, 4), (False, 8), (True, 1)])
def test_two_stages_by_hand(two: Ranks, alone: Any, tied: bool, micro_batches: int, schedule: str) -> None:
    results = check(two, alone, tied, micro_batches, schedule)
    orders = schedules.orders(schedule, 2, micro_batches)
    assert [result["held"] for result in results] == [schedules.most_activations(order) for order in orders]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_four_stages_by_hand(four: Ranks, alone: Any, schedule: str) -> None:
    """Of 1, 1, 1 and 2 blocks."""
    results = check(four, alone, True, 8, schedule)
    assert [result["held"] for result in results] == ([8] * 4 if schedule == "gpipe" else [4, 3, 2, 1])


def test_two_pipelines_in_groups(four: Ranks, alone: Any) -> None:
    check(four, alone, True, 4, "1f1b", size=2)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_the_library(two: Ranks, alone: Any, schedule: str) -> None:
    check(two, alone, True, 4, schedule, library=True)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_the_bubble_that_is_measured(four: Ranks, schedule: str) -> None:
    """Four stages that sleep 20 and 40 ms on 8 micro-batches: 3 / 11 of the time is bubble, by the formula.

    The band: a message and a late alarm take a millisecond or two of a micro-batch's 60, more on a busy machine,
    hence the best of three; a late alarm alone makes work longer, and the share a little smaller. Stages that did not
    overlap would stand still for 0.75 of the time.
    """
    predicted = schedules.predicted_bubble(4, 8)
    measured = min(
        schedules.bubble_share([piece for result in results for piece in result.pieces])
        for results in (four.run(jobs.sleep, 8, schedule) for _ in range(3))
    )
    assert predicted - 0.02 < measured < predicted + 0.06


def test_what_cannot_be_run(two: Ranks) -> None:
    for said in two.run(jobs.refused):
        assert [words.split(";")[0] for words in said] == [
            "8 rows are not 3 equal micro-batches",
            "schedule='zigzag' is none of gpipe, 1f1b, interleaved",
            "schedule='interleaved' is none of gpipe, 1f1b",
            "a stage has one part of the model here",
            "3 stages on 2 ranks",
            "stage 0 of 6 of a model with 5 blocks: take at most 5 stages",
            "NCCL's sends wait for their receivers: run this on CPU tensors, or take `library_step`",
        ]
