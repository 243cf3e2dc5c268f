"""A progress line that rewrites itself in a terminal and in JupyterLab, and leaves one clean line behind.

The last line carries no times, so that a notebook run twice is saved the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TextIO, TypeVar

T = TypeVar("T")
REFRESH_SECONDS = 0.2


class Line:
    """One line of progress: `update` it as often as you like, `close` it once.

    Args:
        label: what is going on, in a word or two.
        total: number of steps, None where it is unknown.
        stream: where to write; standard output by default. Only a terminal or a notebook sees the frames in
            between; a log file gets the last line alone.
    """

    def __init__(self, label: str, total: int | None = None, stream: TextIO | None = None) -> None:
        self.label = label
        self.total = total
        self.stream = sys.stdout if stream is None else stream
        self.step = 0
        self.values: dict[str, float] = {}
        self._live = self.stream.isatty() or type(self.stream).__module__.startswith("ipykernel")
        self._start = time.monotonic()
        self._drawn = 0.0
        self._width = 0
        self._closed = False

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Say that `step` steps are done, with the values to show beside them."""
        self.step = step
        if values:
            self.values.update({key: float(value) for key, value in values.items()})
        now = time.monotonic()
        if self._live and now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            elapsed = now - self._start
            rate = step / elapsed if elapsed > 0 else 0.0
            left = f", {(self.total - step) / rate:.0f} s left" if self.total and rate else ""
            self._write(f"{self._text()}  {rate:.1f} it/s{left}")

    def close(self) -> None:
        """Write the last line and end it."""
        if not self._closed:
            self._closed = True
            self._write(self._text())
            self.stream.write("\n")
            self.stream.flush()

    def _text(self) -> str:
        total = f"/{self.total}" if self.total is not None else ""
        shown = "".join(f"  {key} {value:.4g}" for key, value in self.values.items())
        return f"{self.label} {self.step}{total}{shown}"

    def _write(self, text: str) -> None:
        start = "\r" if self._live else ""
        self.stream.write(start + text.ljust(self._width if self._live else 0))
        self.stream.flush()
        self._width = len(text)


def track(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items of `iterable` and show how many are done. Interrupted, it still ends its line."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    line = Line(label, total)
    try:
        for step, item in enumerate(iterable, start=1):
            yield item
            line.update(step)
    finally:
        line.close()
