"""Read a trace that `torch.profiler` exported, and say how much of it the model spent waiting for data.

The format is Chrome's trace event format: JSON with a list `traceEvents`, times in microseconds.
torch's DataLoader marks each of its `__next__` calls by itself; the model's part is marked with
`torch.profiler.record_function`.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch.profiler import profile

# Every DataLoader iterator records `enumerate(DataLoader)#<class of the iterator>.__next__`.
WAITING = "enumerate(DataLoader)"


@dataclass(frozen=True)
class Span:
    """One bar of a trace. Times in seconds; `thread` tells apart what runs side by side."""

    name: str
    start: float
    end: float
    thread: str = ""
    category: str = ""


@contextmanager
def recorded_trace(path: Path | str) -> Iterator[None]:
    """Profile the block, on the CPU and on a GPU where there is one, and write the trace to `path`.

    The profiler's C++ part announces each start and stop on stderr unless its log level is raised before its first use.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile() as profiler:
        yield
    profiler.export_chrome_trace(str(path))


def read_trace(path: Path | str) -> list[Span]:
    """The bars of a trace file (`.json` or `.json.gz`), in the order of their start; the earliest starts at 0.

    Raises:
        ValueError: when the file is not a trace, or holds no bar.
    """
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content = json.loads(raw)
        events = content["traceEvents"] if isinstance(content, dict) else content
        spans = [
            Span(
                str(event["name"]),
                event["ts"] / 1e6,
                (event["ts"] + event["dur"]) / 1e6,
                f"{event.get('pid')}/{event.get('tid')}",
                str(event.get("cat", "")),
            )
            for event in events
            if event.get("ph") == "X"
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path.name} is not a Chrome trace ({error!r}); write one with `prof.export_chrome_trace`"
        raise ValueError(message) from error
    if not spans:
        raise ValueError(f"{path.name} holds no event with a duration; was anything run inside the profiler?")
    zero = min(span.start for span in spans)
    spans = [Span(s.name, s.start - zero, s.end - zero, s.thread, s.category) for s in spans]
    return sorted(spans, key=lambda span: (span.start, -span.end))


def named(spans: Sequence[Span], beginning: str) -> list[Span]:
    """The spans whose name begins so. The profiler's own copies for the GPU's timeline are left out.

    Raises:
        ValueError: when there are none.
    """
    found = [s for s in spans if s.name.startswith(beginning) and s.category != "gpu_user_annotation"]
    if not found:
        raise ValueError(f"no span is named {beginning!r}...; the trace has {sorted({s.name for s in spans})[:8]}")
    return found


def covered(spans: Sequence[Span], start: float, end: float) -> float:
    """Seconds between `start` and `end` in which at least one of the spans runs. Nested spans count once."""
    seconds = 0.0
    reached = start
    for span in sorted(spans, key=lambda span: span.start):
        begin, stop = max(span.start, reached), min(span.end, end)
        if stop > begin:
            seconds += stop - begin
            reached = stop
    return seconds


def steady_window(spans: Sequence[Span], step: str, skip: int = 1) -> tuple[float, float]:
    """From the start of span number `skip` of that name to the start of the last one: whole steps, and nothing else.

    The first steps (filling, warm-up) and the end of an epoch (workers shut down) are so left out.

    Raises:
        ValueError: when there are too few such spans.
    """
    starts = sorted(span.start for span in named(spans, step))
    if skip < 0 or len(starts) - skip < 2:
        raise ValueError(f"skip={skip} of {len(starts)} spans {step!r} leaves no whole step; profile more steps")
    return starts[skip], starts[-1]


def traced_waiting_share(spans: Sequence[Span], step: str, waiting: str = WAITING, skip: int = 1) -> float:
    """Share of the steady window in which the main process waited for data.

    Args:
        spans: a trace.
        step: name of a span that occurs once a step, such as "forward".
        waiting: how the names of the waiting spans begin.
        skip: steps to leave out at the start.

    Raises:
        ValueError: when there are no such spans, or too few.
    """
    start, end = steady_window(spans, step, skip)
    return covered(named(spans, waiting), start, end) / (end - start)


def idle_share(spans: Sequence[Span], step: str, category: str = "kernel", skip: int = 1) -> float:
    """Share of the steady window in which no span of a category runs: with "kernel", how long the GPU does nothing.

    Raises:
        ValueError: when the trace has no span of that category (one without a GPU has no kernels).
    """
    kernels = [span for span in spans if span.category == category]
    if not kernels:
        raise ValueError(f"the trace has no span of category {category!r}; was the GPU profiled?")
    start, end = steady_window(spans, step, skip)
    return 1 - covered(kernels, start, end) / (end - start)
