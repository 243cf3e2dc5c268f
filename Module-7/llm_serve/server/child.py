"""A server in a process of its own, for whoever wants to ask it things for a while: a lesson, a race, a test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx


def ours(model: str, *options: str) -> list[str]:
    """The command that serves a model with `llm-serve`, but for its port; the server ends with this process."""
    return [sys.executable, "-m", "llm_serve.cli", model, "--parent", str(os.getpid()), *options]


class Child:
    """A server in a process of its own, on a free port.

    Args:
        command: to which `--port` is added.
        environment: variables that are set for it beside this process's.

    Attributes:
        url: where it listens.
        process: its process.
        log: what it writes, a file that is gone after `stop`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._place = tempfile.TemporaryDirectory()
        self.log = Path(self._place.name) / "log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--port", str(port)], stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip

    def wait(self, patience: float = 240.0) -> None:
        """Return when `/health` answers.

        Args:
            patience: seconds that it may take.

        Raises:
            RuntimeError: when it ends, or is not ready in time, with its last line.
        """
        until = time.monotonic() + patience
        while True:
            if self.process.poll() is not None or time.monotonic() > until:
                lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise RuntimeError(f"the server is not ready: {lines[-1][:300] if lines else 'it said nothing'}")
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.2)

    def kill(self) -> None:
        """End it at once, as a machine that fails would."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Let open answers end, then the process and those that it started: some servers have several."""
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        self._place.cleanup()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str] | None = None, patience: float = 240.0
) -> Iterator[str]:
    """Start a server on a free port, wait until `/health` answers, give its address, and end it.

    Args:
        command: to which `--port` is added.
        environment: variables that are set for it beside this process's.
        patience: seconds that it may take to be ready.

    Raises:
        RuntimeError: when it ends, or is not ready in time, with its last line.
    """
    child = Child(command, environment)
    try:
        child.wait(patience)
        yield child.url
    finally:
        child.stop()
