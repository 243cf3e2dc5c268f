"""Other people's errors, in words that fit into a message of one line."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """What an error says first, short enough to stand in another's message; a line that ends in a colon needs its
    next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:150]


def reason(error: OSError) -> str:
    """What the system said, without a path."""
    return error.strerror or one_line(error)


def is_failure(error: BaseException) -> bool:
    """Whether the error says that something failed, not that the program is to stop. A panic of a library in Rust is
    no `Exception` to Python, and says that it failed."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
