"""Run one notebook from its first cell to its last, and say what failed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from course.engine.environment import kernel_environment
from course.engine.kernel import Kernel, Stopped
from course.folders import temporary_folder
from course.notebook.format import Notebook, first_code_line, runnable
from course.notebook.normalise import coalesce


@dataclass
class Failure:
    """Why a notebook did not run to its end; `cell` counts its code cells from 1, 0 is before the first."""

    cell: int
    cells: int
    line: str
    error: str

    def lines(self, notebook: str) -> list[str]:
        """The three lines (one, where no cell was reached) that tell a reader what failed, and where."""
        if not self.line:
            return [f"FAILED  {notebook}: {self.error}"]
        return [
            f"FAILED  {notebook}, cell {self.cell} of {self.cells}",
            f"        {self.line}",
            f"        {self.error}",
        ]


@dataclass
class Outcome:
    """What a run of one notebook gave; the outputs are in the notebook itself."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures


def environment(notebook: str, claims: Path | None) -> dict[str, str]:
    """The kernel's environment: this process's, with what makes a notebook run the same everywhere.

    Args:
        notebook: its path relative to the root, for the records of its claims.
        claims: the file that its claims are appended to.
    """
    changes = kernel_environment(os.environ, notebook, claims)
    return {name: value for name, value in {**os.environ, **changes}.items() if value is not None}


async def execute(
    notebook: Notebook,
    folder: Path,
    env: dict[str, str],
    *,
    timeout: float = 600,
    keep_going: bool = False,
    on_cell: Callable[[int, int], None] = lambda number, count: None,
) -> Outcome:
    """Execute a notebook in place, in a kernel of its own that leaves no process and no temporary file.

    Args:
        notebook: its outputs are replaced.
        folder: the kernel's working folder.
        env: the kernel's environment.
        timeout: seconds that one cell may take.
        keep_going: go on after a cell that raised; for exercises, where each check is asked.
        on_cell: called before each code cell with its number and their count.
    """
    with temporary_folder() as temporary:
        kernel = Kernel(notebook, folder, {**env, **temporary}, timeout)
        return await _execute(notebook, kernel, keep_going, on_cell)


async def _execute(
    notebook: Notebook, kernel: Kernel, keep_going: bool, on_cell: Callable[[int, int], None]
) -> Outcome:
    clear(notebook)
    outcome = Outcome()
    start = time.monotonic()
    sampler = asyncio.create_task(kernel.sample())
    cells = runnable(notebook)
    number, cell = 0, None
    try:
        await kernel.start()
        for number, (index, cell) in enumerate(cells, start=1):
            on_cell(number, len(cells))
            error = await kernel.run(cell, index, number)
            if error:
                outcome.failures.append(Failure(number, len(cells), first_code_line(cell), error))
                if not keep_going:
                    break
    except Stopped as stopped:
        line = first_code_line(cell) if cell is not None else ""
        outcome.failures.append(Failure(number, len(cells), line, str(stopped)))
    finally:
        sampler.cancel()
        coalesce(notebook)
        kernel.measure()
        await kernel.stop()
        outcome.seconds = time.monotonic() - start
        outcome.peak_memory_bytes = kernel.peak
    return outcome


def clear(notebook: Notebook) -> None:
    """Drop all outputs."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
