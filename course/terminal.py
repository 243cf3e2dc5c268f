"""What each of our commands does with its terminal: letters it cannot show, a closed pipe, SIGTERM."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import NoReturn

from course.errors import traceback_wanted

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


def options_of(command: str) -> argparse.ArgumentParser:
    """A parser for a command's options; `parse` uses it. An option is written out, not abbreviated."""
    return argparse.ArgumentParser(prog=command, allow_abbrev=False, exit_on_error=False)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Options of a command line.

    Raises:
        ValueError: for a mistake in them, for which argparse would leave the program; the message names `--help`.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{parser.prog} --help`")

    parser.error = refuse  # type: ignore[method-assign]
    try:
        return parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        refuse(str(error))


def run_program(
    name: str, run: Callable[[list[str]], int], told: Callable[[BaseException], str],
    arguments: Sequence[str] | None = None, resumable: str | Sequence[str] = (), go_on: str = "",
    catch_sigterm: bool = True,
) -> int:  # fmt: skip
    """Run a command line; the exit code. A mistake is one line on stderr, unless `--traceback` stands among it.

    Args:
        name: of the program.
        run: takes the arguments without `--traceback`; its result is the exit code.
        told: an error in one line.
        arguments: those of the process by default.
        resumable: the command that can be gone on with after a stop, or several.
        go_on: how, in words.
        catch_sigterm: end by `ended_by_sigterm`; a process that another one manages ends as that one has it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    traceback = "--traceback" in given or traceback_wanted()
    given = [each for each in given if each != "--traceback"]
    names = (resumable,) if isinstance(resumable, str) else resumable
    advice = f"; {go_on}" if given and given[0] in names else ""
    show_any_letter()
    try:
        with ended_by_sigterm() if catch_sigterm else nullcontext():
            code = run(given)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt as stop:
        print(f"{name}: stopped; {stop}" if str(stop) else f"{name}: stopped{advice}", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        if stop.code != TERMINATED:
            raise
        print(f"{name}: terminated{advice}", file=sys.stderr)
        return TERMINATED
    except BrokenPipeError:  # whoever read what is printed has gone
        forget_output()
        return PIPE_CLOSED
    except BaseException as error:  # a panic of a library in Rust is no Exception, and says that it failed
        if traceback or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        forget_output()
        print(f"{name}: {told(error)}", file=sys.stderr)
        return 1
