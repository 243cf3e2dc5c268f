"""What `course run` shows while it works: a live table in a terminal, else a line a notebook."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from course.run.history import Result

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Running:
    """One notebook at work."""

    path: str
    expected: float | None
    held: Callable[[], int]
    cell: int = 0
    cells: int = 0
    start: float = field(default_factory=time.monotonic)

    def on_cell(self, number: int, count: int) -> None:
        """Take note of the cell that starts now."""
        self.cell, self.cells = number, count


class Display:
    """Use as a context: `start` a notebook, `finish` it; `say` prints a line that stays.

    Args:
        total: how many notebooks this run has.
        finished: how many of them were finished before.
        console: where to print; standard output by default.
    """

    def __init__(self, total: int, finished: int = 0, console: Console | None = None) -> None:
        self.console = console or _console()
        self.total, self.finished, self.held = total, finished, 0
        self._running: dict[str, Running] = {}
        self._start = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def start(self, running: Running) -> None:
        """Show a notebook as running."""
        self._running[running.path] = running

    def drop(self, path: str) -> None:
        """Take a notebook off the table without a word."""
        self._running.pop(path, None)

    def finish(self, path: str, record: Result) -> None:
        """Print how a notebook ended."""
        self.drop(path)
        self.finished += 1
        self.held += record.held
        if record.ok or not record.error:
            self.say(f"{'ok' if record.ok else 'FAILED'}  {path}  {_summary(record)}")
        else:
            for line in record.error:
                self.say(line)

    def say(self, line: str) -> None:
        """Print one line, as it is."""
        from rich.text import Text

        # Not `print(style=...)`: that would colour the live table as well.
        self.console.print(Text(line, style="bold red" if line.startswith("FAILED") else ""))

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="dim")
        for name, justify in (
            ("notebook", "left"),
            ("cell", "right"),
            ("time", "right"),
            ("claims held", "right"),
        ):
            table.add_column(name, justify=justify, overflow="ellipsis", no_wrap=True, min_width=12)  # type: ignore[arg-type]
        held = self.held
        for running in list(self._running.values()):
            now = running.held()
            held += now
            expected = "?" if running.expected is None else clock(running.expected)
            elapsed = clock(time.monotonic() - running.start)
            cell = f"{running.cell}/{running.cells}" if running.cells else "starting"
            table.add_row(running.path, cell, f"{elapsed} of {expected}", str(now))
        table.add_row(
            f"{self.finished} of {self.total} finished",
            "",
            clock(time.monotonic() - self._start),
            str(held),
            style="dim",
        )
        return table


def _console() -> Console:
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would leave by SystemExit, which asyncio shows with a traceback

    return Piped(highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds as "7 s" or "2:05"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02}"


def _summary(record: Result) -> str:
    parts = [
        f"{record.seconds:.1f} s",
        f"{record.peak_memory_bytes / 2**20:.0f} MiB",
        f"{record.held} claims",
    ]
    if record.skipped:
        parts.append(f"{record.skipped} skipped")
    if record.damaged:
        parts.append(f"{record.damaged} damaged")
    if record.exercises:
        parts.append(f"{record.solved} of {record.exercises} exercises")
    return "  ".join(parts)
