"""A loader that works ahead, in one thread: what torch's DataLoader does with processes, in a screenful."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import Queue
from threading import Event, Thread
from typing import Any

END = object()  # behind the last batch


def prefetched(batches: Iterable[Any], depth: int) -> Iterator[Any]:
    """The same batches in the same order, made in another thread while the caller is busy with earlier ones.

    At most `depth` batches lie ready, and the thread holds one more: batch k is begun when batch k - depth - 1 is
    taken. An error of the thread is raised where its batch would have come. Whoever stops early stops the thread too,
    behind the batch that it is making.

    Args:
        batches: what to go through; its work is done in the thread.
        depth: places of the queue.

    Raises:
        ValueError: for a depth below 1; a queue without places would be one without a limit.
    """
    if depth < 1:
        raise ValueError(f"depth={depth}: give the queue at least one place")
    ready: Queue[tuple[Any, BaseException | None]] = Queue(depth)
    stopped = Event()

    def produce() -> None:
        try:
            for batch in batches:
                ready.put((batch, None))
                if stopped.is_set():
                    return
            ready.put((END, None))
        except BaseException as error:
            ready.put((END, error))

    Thread(target=produce, daemon=True).start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is END:
                return
            yield batch
    finally:
        stopped.set()
        while not ready.empty():  # make room for a thread that waits to put its batch down
            ready.get_nowait()
