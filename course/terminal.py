"""What each of our commands does with its terminal: letters it cannot show, a closed pipe, SIGTERM."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

INTERRUPTED, PIPE_CLOSED, TERMINATED = 130, 141, 143  # 128 and the signal's number, as shells count


def show_any_letter() -> None:
    """Put a mark in the place of a letter that the terminal's encoding lacks: it must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Leave by `SystemExit` on SIGTERM, so that whatever is open is closed: kernels, folders, locks."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def forget_output() -> None:
    """Drop what standard output has not taken: the interpreter would try again at its end, and print a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
