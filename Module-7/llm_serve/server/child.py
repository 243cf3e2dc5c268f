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
    """The command that serves a model with `llm-serve`, but for its port."""
    return [sys.executable, "-m", "llm_serve.cli", model, *options]


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [*command, "--port", str(port)], stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
            try:
                _wait(process, f"http://127.0.0.1:{port}", log, patience)
                yield f"http://127.0.0.1:{port}"
            finally:
                _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, patience: float) -> None:
    until = time.monotonic() + patience
    while True:
        if process.poll() is not None or time.monotonic() > until:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"the server is not ready: {lines[-1][:300] if lines else 'it said nothing'}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and those that it started: some servers have several."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
