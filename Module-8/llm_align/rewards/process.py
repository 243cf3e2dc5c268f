"""A reward's process, seen from outside: started, asked, and killed when it does not answer in time."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass

START_SECONDS = 120.0  # a reward's module may import torch, on a busy machine
BOOT = (
    "import json, sys; path, spec, seconds, memory = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from llm_align.rewards.child import serve; serve(spec, seconds, memory)"
)


@dataclass(frozen=True)
class Score:
    """A reward of one answer.

    Attributes:
        value: of the reward; 0.0 when it failed.
        failure: why it failed, one line; None when it did not.
    """

    value: float
    failure: str | None = None


def ending(code: int) -> str:
    """How a process ended, from its return code."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"


class Late(BaseException):
    """A call took too long. No `Exception`, so that a reward's own `except Exception` lets it pass."""


class Process:
    """A reward's process and the pipes to it."""

    def __init__(self, spec: str, seconds: float, memory_bytes: int | None) -> None:
        settings = json.dumps([[place or os.getcwd() for place in sys.path], spec, seconds, memory_bytes])
        self._owner = os.getpid()
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, settings],  # -P: no file beside this one stands in for Python's own
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii", start_new_session=True,
        )  # fmt: skip
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()  # a pipe cannot be waited for with a limit everywhere
        try:
            failure = self._next(START_SECONDS).failure
        except Late:
            failure = f"the reward {spec!r} was not loaded in {START_SECONDS:g} seconds"
        except EOFError as error:
            failure = f"the reward {spec!r}: {error} while it was loaded"
        except BaseException:
            self.kill()
            raise
        if failure is not None:
            self.kill()
            raise ValueError(failure)

    @property
    def alive(self) -> bool:
        """Whether it can be asked.

        Raises:
            RuntimeError: in a fork of the process that started it: two that ask would get each other's answers.
        """
        if self._owner != os.getpid():
            raise RuntimeError(
                "this reward's process belongs to the process that forked; make `Rewards` after the fork"
            )
        return self._popen.poll() is None

    def ask(self, request: list[str], seconds: float) -> Score:
        """The answer to one request.

        Raises:
            Late: when it does not come in time.
            EOFError: when the process has ended, with the reason.
        """
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which `_next` says
            self._popen.stdin.write(json.dumps(request) + "\n")
            self._popen.stdin.flush()
        return self._next(seconds)

    def kill(self) -> None:
        """End it, with what it started in its group, unless it has ended by itself."""
        if self.alive:
            with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of one that has ended
                os.killpg(self._popen.pid, signal.SIGKILL) if hasattr(os, "killpg") else self._popen.kill()
            self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with suppress(ValueError):  # the pipe was closed meanwhile
            for line in self._popen.stdout:
                self._lines.put(line)
        self._lines.put("")

    def _next(self, seconds: float) -> Score:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise Late from None
        if line:
            value, failure = json.loads(line)
            return Score(value, failure)
        try:
            code = self._popen.wait(5)
        except subprocess.TimeoutExpired:
            raise EOFError("its process closed the pipe for its answers") from None
        raise EOFError(f"its process ended ({ending(code)})")
