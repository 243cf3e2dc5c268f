"""A kernel of this interpreter: started, asked cell by cell, watched, and ended with its children."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

from course.engine.environment import kernel_manager
from course.errors import CourseError, one_line
from course.notebook.format import Notebook

START_SECONDS = 120
SAMPLE_SECONDS = 0.25


class Stopped(Exception):
    """The kernel cannot go on; the message says why in the reader's words."""


class Kernel:
    """A kernel process, driven through nbclient's cell by cell interface.

    nbclient's own `execute` is not used: it takes over SIGINT and SIGTERM, and reports a cancelled run as a
    dead kernel.
    """

    def __init__(self, notebook: Notebook, folder: Path, env: dict[str, str], timeout: float) -> None:
        self.notebook, self.folder, self.env, self.timeout = notebook, folder, env, timeout
        self.peak = 0
        self._reply: dict[str, Any] = {}
        self._client: Any = None
        self._pid: int | None = None

    async def start(self) -> None:
        for attempt in (1, 2):
            try:
                await self._start()
                return
            except (RuntimeError, OSError) as error:
                # Two kernels that start at the same moment can be given the same port: one more try.
                died = await self._exit_status()
                await self.stop()
                if attempt == 2:
                    home = os.access(os.path.expanduser("~"), os.W_OK)
                    advice = "`course doctor` says more" if home else "set HOME to a folder that you may write"
                    raise Stopped(f"the kernel did not start: {died or one_line(error)}; {advice}") from None

    async def _start(self) -> None:
        from nbclient import NotebookClient

        # Not in the user's home, which may be missing or closed to writing.
        connection = str(Path(self.env["TMPDIR"]) / "kernel.json")
        try:
            manager = kernel_manager(connection_file=connection)
        except CourseError as error:
            raise Stopped(str(error)) from None
        client = NotebookClient(self.notebook, km=manager, allow_errors=True)
        # No widget front-end: Lightning's Rich bar makes it wait for a message that never comes
        # (nbclient#312).
        client.widget_registry = {}
        client.log = logging.getLogger("course.engine.kernel")
        client.log.setLevel(logging.CRITICAL + 1)
        manager.log = client.log
        client.timeout = int(self.timeout) if self.timeout >= 1 else 1
        client.on_cell_executed = self._answered
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
        kernel: Any = manager.client()
        client.kc = kernel
        kernel.log = client.log
        kernel.start_channels()
        kernel.allow_stdin = False
        await kernel.wait_for_ready(timeout=START_SECONDS)

    async def run(self, cell: Any, index: int, number: int) -> str:
        """Run one cell; returns "Type: first line" of the exception it raised, or nothing."""
        from nbclient.exceptions import CellTimeoutError, DeadKernelError
        from nbformat import ValidationError

        self._reply = {}
        try:
            await self._client.async_execute_cell(cell, index, execution_count=number)
        except CellTimeoutError:
            raise Stopped(f"past its time limit of {self.timeout:g} s for one cell (--timeout)") from None
        except ValidationError as error:
            raise Stopped(f"it shows what no notebook can hold: {str(error).split(chr(10))[0][:160]}") from None
        except DeadKernelError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError from None
            raise Stopped(await self._exit_status() or "the kernel died") from None
        finally:
            self.measure()
        if "raises-exception" in cell.metadata.get("tags", []):
            return ""
        # An error whose text cannot be sent leaves no output: the kernel's reply tells of one all the same.
        for said in [output for output in cell.outputs if output.output_type == "error"] + [self._reply]:
            if said.get("ename"):
                message = str(said.get("evalue", "")).strip().split("\n")[0]
                return f"{said['ename']}: {message}" if message else str(said["ename"])
        return ""

    def _answered(self, *, execute_reply: Any, **_: Any) -> None:
        content = (execute_reply or {}).get("content", {})
        self._reply = content if content.get("status") == "error" else {}

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
