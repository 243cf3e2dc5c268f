"""One line for whatever ends a command: what happened, to which file, and what to do about it."""

from __future__ import annotations

import errno
import os
import sys
import traceback


class CourseError(Exception):
    """A mistake that one line explains; the command line prints it without a traceback."""


class NotebookError(CourseError):
    """A file that is not a notebook this course can use."""


SWITCH = "COURSE_TRACEBACK"
_SPACE = "free some space, or write elsewhere with --output"
_ACCESS = "write elsewhere with --output, or change who may read and write there"
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.EROFS: _ACCESS,
    errno.ENOENT: "check the path, and that the working folder is still there (cd to one that is)",
    errno.ENOTDIR: "a part of the path is a file: move it away, or write elsewhere with --output",
    errno.EEXIST: "a file is where a folder belongs: move it away, or write elsewhere with --output",
    errno.EISDIR: "a folder is where a file belongs: move it away",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ELOOP: "a link leads to itself: remove it",
    errno.EMFILE: "too many files are open: raise the limit with `ulimit -n`, or run with --jobs 1",
}


def one_line(error: BaseException) -> str:
    """What went wrong and what to do, in one line.

    Args:
        error: anything that was raised; of a group the first member speaks.
    """
    error = first(error)
    if isinstance(error, CourseError):
        return _joined(str(error))
    if isinstance(error, OSError):
        named = isinstance(error.filename, (str, bytes, os.PathLike))
        place = f"{_short(os.fsdecode(error.filename))}: " if named else ""
        text = f"{place}{error.strerror or str(error) or type(error).__name__}"
        advice = _ADVICE.get(error.errno or 0, "")
        return _joined(text + (f"; {advice}" if advice else ""))
    # pathlib's words for a loop, and for a user without a home.
    if isinstance(error, RuntimeError) and "ymlink loop" in str(error):
        return _joined(f"{error}: a link leads to itself; remove it")
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return _joined(f"{error}; set HOME to a folder")
    said = _joined(str(error).strip().split("\n")[0])
    return f"unexpected {type(error).__name__}{': ' if said else ''}{said} ({SWITCH}=1 shows where)"


def first(error: BaseException) -> BaseException:
    """The error itself; of a group of errors, which side-by-side tasks give, the first one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def traceback_wanted() -> bool:
    """Whether `COURSE_TRACEBACK` asks for more than a line."""
    return os.environ.get(SWITCH, "") not in ("", "0")


def report(error: BaseException) -> int:
    """Print the line, or the whole traceback where `COURSE_TRACEBACK=1` asks for it; returns the exit status 2."""
    if traceback_wanted():
        traceback.print_exception(error)
    else:
        print(f"course: {one_line(error)}", file=sys.stderr)
    return 2


def _joined(text: str) -> str:
    """The text on one line, whatever its characters break a line with."""
    return _short(" ".join(text.split()), 1000)


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"
