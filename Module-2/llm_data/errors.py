"""Other people's errors, in words that fit into a message of one line."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """An error's first line, short enough to stand in another's message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:120]


def reason(error: OSError) -> str:
    """What the system said, without a path."""
    return error.strerror or one_line(error)


def is_failure(error: BaseException) -> bool:
    """Whether the error says that something failed, not that the program is to stop. A panic of a library in Rust is
    no `Exception` to Python, and says that it failed."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
