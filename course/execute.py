"""One notebook in one kernel of this interpreter, with what went wrong said in the reader's words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course.notebooks import Notebook, coalesce, first_code_line, runnable

START_SECONDS = 120
SAMPLE_SECONDS = 0.25


@dataclass
class Failure:
    """Why a notebook did not run to its end: `cell` is its position counted from 1, 0 before the first cell."""

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


def environment(notebook: str, claims: Path | None, threads: int) -> dict[str, str]:
    """The kernel's environment: this process's, with what makes a notebook run the same everywhere.

    Args:
        notebook: its path relative to the root, for the records of its claims.
        claims: the file that its claims are appended to.
        threads: for OpenMP, unless OMP_NUM_THREADS is already set.
    """
    env = dict(os.environ)
    # Without bytecode each kernel compiles torch's and Lightning's thousands of files anew: 9 CPU seconds.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env.setdefault("OMP_NUM_THREADS", str(threads))
    env.update(
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        PYTHONHASHSEED="0",
        COURSE_NOTEBOOK=notebook,
    )
    env.pop("COURSE_CLAIMS", None)
    if claims is not None:
        env["COURSE_CLAIMS"] = str(claims)
    return env


async def execute(
    notebook: Notebook,
    folder: Path,
    env: dict[str, str],
    *,
    timeout: float = 600,
    keep_going: bool = False,
    on_cell: Callable[[int, int], None] = lambda number, of: None,
) -> Outcome:
    """Execute a notebook in place, in a kernel of its own that is gone afterwards, with all its child processes.

    Args:
        notebook: its outputs are replaced.
        folder: the kernel's working folder.
        env: the kernel's environment.
        timeout: seconds that one cell may take.
        keep_going: go on after a cell that raised; for exercises, where each check is asked.
        on_cell: called before each code cell with its number and their count.
    """
    clear(notebook)
    outcome = Outcome()
    start = time.monotonic()
    kernel = _Kernel(notebook, folder, env, timeout)
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
    except _Stopped as stopped:
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


class _Stopped(Exception):
    """The kernel cannot go on; the message says why."""


class _Kernel:
    """A kernel process, driven through nbclient's cell by cell interface.

    nbclient's own `execute` is not used: it takes over SIGINT and SIGTERM, and reports a cancelled run as a dead
    kernel.
    """

    def __init__(self, notebook: Notebook, folder: Path, env: dict[str, str], timeout: float) -> None:
        self.notebook, self.folder, self.env, self.timeout = notebook, folder, env, timeout
        self.peak = 0
        self._client: Any = None
        self._pid: int | None = None

    async def start(self) -> None:
        for attempt in (1, 2):
            try:
                await self._start()
                return
            except RuntimeError as error:
                # Two kernels that start at the same moment can be given the same port: one more try.
                died = await self._exit_status()
                await self.stop()
                if attempt == 2:
                    raise _Stopped(
                        f"the kernel did not start: {died or str(error).splitlines()[0]}"
                    ) from None

    async def _start(self) -> None:
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient

        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=_this_interpreter())
        client = NotebookClient(self.notebook, km=manager, allow_errors=True)
        # Not a widget front-end: with Lightning's Rich bar it waits for messages that never come (nbclient#312).
        client.widget_registry = {}
        client.log = logging.getLogger("course.kernel")
        client.log.setLevel(logging.CRITICAL + 1)
        manager.log = client.log
        client.timeout = int(self.timeout) if self.timeout >= 1 else 1
        client.reset_execution_trackers()
        self._client = client
        # Without a history file two kernels do not wait for each other's lock.
        await manager.start_kernel(
            extra_arguments=["--HistoryManager.hist_file=:memory:", "--log-level=ERROR"],
            env=self.env,
            cwd=str(self.folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._pid = getattr(manager.provisioner, "pid", None)
        client.kc = manager.client()
        client.kc.log = client.log
        client.kc.start_channels()
        client.kc.allow_stdin = False
        await client.kc.wait_for_ready(timeout=START_SECONDS)

    async def run(self, cell: Any, index: int, number: int) -> str:
        """Run one cell; returns "Type: first line" of the exception it raised, or nothing."""
        from nbclient.exceptions import CellTimeoutError, DeadKernelError

        try:
            await self._client.async_execute_cell(cell, index, execution_count=number)
        except CellTimeoutError:
            raise _Stopped(f"past its time limit of {self.timeout:g} s for one cell (--timeout)") from None
        except DeadKernelError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError from None
            raise _Stopped(await self._exit_status() or "the kernel died") from None
        finally:
            self.measure()
        if "raises-exception" in cell.metadata.get("tags", []):
            return ""
        for output in cell.outputs:
            if output.output_type == "error":
                message = str(output.evalue).strip().split("\n")[0]
                return f"{output.ename}: {message}" if message else str(output.ename)
        return ""

    async def _exit_status(self) -> str:
        provisioner = getattr(getattr(self._client, "km", None), "provisioner", None)
        status = await provisioner.poll() if provisioner is not None else None
        if status is None:
            return ""
        if status == -9:
            return "the kernel was killed (signal 9), most often for using more memory than there is"
        if status < 0:
            return f"the kernel was ended by signal {-status}"
        return f"the kernel exited by itself with status {status}"

    async def sample(self) -> None:
        """Watch the memory until cancelled."""
        while True:
            self.measure()
            await asyncio.sleep(SAMPLE_SECONDS)

    def measure(self) -> None:
        """Look at the resident memory of the kernel and its children once."""
        self.peak = max(self.peak, sum(_resident(process) for process in self._tree()))

    def _tree(self) -> list[Any]:
        import psutil

        if self._pid is None:
            return []
        try:
            kernel = psutil.Process(self._pid)
            return [kernel, *kernel.children(recursive=True)]
        except psutil.Error:
            return []

    async def stop(self) -> None:
        """End the kernel and every process it started, also while this task is being cancelled."""
        client, self._client = self._client, None
        if client is None:
            return
        import psutil

        tree = self._tree()
        with contextlib.suppress(Exception):
            if client.kc is not None:
                client.kc.stop_channels()
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(Exception):
            await client.km.shutdown_kernel(now=True)
        with contextlib.suppress(Exception):
            await client.km.cleanup_resources()
        self._pid = None


def _resident(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _this_interpreter() -> Any:
    """A kernel specification manager that knows one kernel, the one of the running interpreter.

    The one that JupyterLab calls "python3" may point to another environment.

    Raises:
        _Stopped: when ipykernel is not installed.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    try:
        from ipykernel.kernelspec import get_kernel_dict
    except ImportError:
        raise _Stopped(
            f"no Python kernel in this environment; type: {sys.executable} -m pip install ipykernel"
        ) from None

    class ThisInterpreter(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> Any:
            return KernelSpec(resource_dir="", **get_kernel_dict())

    return ThisInterpreter()
