"""The order in which the stages of a pipeline work, a clock that runs it, and what stands still meanwhile.

p stages, m micro-batches. Stage s holds the s-th part of the layers. The forward work on a micro-batch needs the stage
before to be done with it, the backward work the stage after. Nothing here needs a process or a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Work(NamedTuple):
    """A piece of work of a stage.

    Attributes:
        kind: "forward" or "backward".
        micro_batch: from 0.
        chunk: which of the stage's parts of the model; other than 0 where the schedule is interleaved.
    """

    kind: str
    micro_batch: int
    chunk: int = 0


class Piece(NamedTuple):
    """A piece of work on the clock: `start` and `end` in the units of the times given."""

    stage: int
    kind: str
    micro_batch: int
    start: float
    end: float
    chunk: int = 0


def gpipe(stage: int, stages: int, micro_batches: int) -> list[Work]:
    """All forward, then all backward. Huang et al. 2019 (arXiv:1811.06965), section 2.3.

    Every stage does the same, and keeps the activations of all m micro-batches.
    """
    forwards = [Work("forward", i) for i in range(micro_batches)]
    return forwards + [Work("backward", i) for i in range(micro_batches)]


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> list[Work]:
    """1F1B: each backward work as soon as it can be, so that activations are soon let go. Narayanan et al. 2021
    (arXiv:2104.04473), section 2.2.1.

    A stage begins with as many forwards as there are stages after it, then takes forward and backward in turns, and
    ends with backwards. It keeps the activations of at most min(p - s, m) micro-batches.
    """
    first = min(stages - stage - 1, micro_batches)
    order = [Work("forward", i) for i in range(first)]
    for i in range(first, micro_batches):
        order += [Work("forward", i), Work("backward", i - first)]
    return order + [Work("backward", i) for i in range(micro_batches - first, micro_batches)]


def interleaved(stage: int, stages: int, micro_batches: int, chunks: int = 2) -> list[Work]:
    """1F1B where each stage holds v parts that do not follow each other, so that filling takes 1 / v of the time.

    Stage s holds parts s, s + p, s + 2 p, and so on. Narayanan et al. 2021, section 2.2.2.

    Raises:
        ValueError: when m is not a multiple of p: the stages take turns in groups of p micro-batches.
    """
    if micro_batches % stages:
        raise ValueError(
            f"micro_batches={micro_batches} must be a multiple of stages={stages} for the interleaved schedule"
        )
    forwards, backwards = list[Work](), list[Work]()
    for group in range(0, micro_batches, stages):
        for chunk in range(chunks):
            forwards += [Work("forward", i, chunk) for i in range(group, group + stages)]
            backwards += [Work("backward", i, chunks - 1 - chunk) for i in range(group, group + stages)]
    first = min(2 * (stages - stage - 1) + (chunks - 1) * stages, len(forwards))
    order = forwards[:first]
    for forward, backward in zip(forwards[first:], backwards[: len(forwards) - first], strict=True):
        order += [forward, backward]
    return order + backwards[len(forwards) - first :]


SCHEDULES: dict[str, Callable[[int, int, int], list[Work]]] = {
    "gpipe": gpipe, "1f1b": one_forward_one_backward, "interleaved": interleaved,
}  # fmt: skip


def orders(schedule: str, stages: int, micro_batches: int) -> list[list[Work]]:
    """The order of every stage.

    Raises:
        ValueError: for an unknown schedule, or numbers below 1.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is none of {', '.join(SCHEDULES)}")
    if stages < 1 or micro_batches < 1:
        raise ValueError(f"stages={stages} and micro_batches={micro_batches} must be 1 or more")
    return [SCHEDULES[schedule](stage, stages, micro_batches) for stage in range(stages)]


def needs(work: Work, stage: int, stages: int, parts: int) -> list[tuple[str, int, int]]:
    """What must be done before a stage's work: (kind, part of the model, micro-batch) of each.

    Part q of the model is on stage q mod p; there are as many parts as stages, unless the schedule is interleaved.
    """
    kind, i, chunk = work
    part = chunk * stages + stage
    if kind == "forward":
        return [("forward", part - 1, i)] if part > 0 else []
    after = [("backward", part + 1, i)] if part + 1 < parts else []
    return [("forward", part, i), *after]


def simulate(
    work: Sequence[Sequence[Work]],
    forward: float | Sequence[float] = 1,
    backward: float | Sequence[float] = 2,
    message: float = 0,
) -> list[Piece]:
    """Run the orders of all stages against a clock: a stage does its next work once it is free and its input is there.

    Args:
        work: an order for each stage.
        forward: time of a forward work: one for all, or one for each stage.
        backward: the same of a backward work.
        message: time from the end of a work until the neighbour has its result.

    Returns:
        What was done when, sorted by start.

    Raises:
        ValueError: for orders in which stages wait for each other for ever, with the work that never begins.
    """
    stages = len(work)
    parts = stages * (1 + max((each.chunk for order in work for each in order), default=0))
    spans = {"forward": forward, "backward": backward}
    done: dict[tuple[str, int, int], float] = {}  # when it ended, by kind, part of the model and micro-batch
    free, timeline = [0.0] * stages, list[Piece]()
    left = [list(order) for order in work]
    while any(left):
        before = len(timeline)
        for stage in range(stages):
            needed = needs(left[stage][0], stage, stages, parts) if left[stage] else []
            if not left[stage] or any(each not in done for each in needed):
                continue
            kind, i, chunk = left[stage].pop(0)
            # Only what another stage has computed takes a message.
            ready = [done[each] + message * (each[1] % stages != stage) for each in needed]
            span = spans[kind]
            start = max(free[stage], *ready, 0)
            end = start + (span[stage] if isinstance(span, Sequence) else span)
            timeline.append(Piece(stage, kind, i, start, end, chunk))
            done[kind, chunk * stages + stage, i] = free[stage] = end
        if len(timeline) == before:
            refuse_circle(left)
    return sorted(timeline, key=lambda piece: (piece.start, piece.stage))


def refuse_circle(left: Sequence[Sequence[Work]]) -> None:
    """Raise a ValueError for work that never begins, by stage what is left of it."""
    stage, never = next((stage, order[0]) for stage, order in enumerate(left) if order)
    raise ValueError(
        f"stage {stage} waits for ever before its {never.kind} work on micro-batch {never.micro_batch}: what "
        "it needs comes later in the order of another stage, or of its own"
    )


def bubble_share(timeline: Sequence[Piece]) -> float:
    """The share of all stages' time, from the first start to the last end, in which they stand still."""
    stages = 1 + max(piece.stage for piece in timeline)
    total = stages * (max(piece.end for piece in timeline) - min(piece.start for piece in timeline))
    busy = sum(piece.end - piece.start for piece in timeline)
    return (total - busy) / total


def predicted_bubble(stages: int, micro_batches: int, chunks: int = 1) -> float:
    """(p - 1) / (v m + p - 1): the share of the time, for stages that take equally long and messages that take none.

    It is the same for GPipe and 1F1B. Papers also give (p - 1) / m: the bubble against the time of the work alone.
    """
    return (stages - 1) / (chunks * micro_batches + stages - 1)


def most_activations(order: Sequence[Work]) -> int:
    """Micro-batches (of a chunk each) whose activations a stage keeps at most: forwards minus backwards so far."""
    held = most = 0
    for each in order:
        held += 1 if each.kind == "forward" else -1
        most = max(most, held)
    return most
