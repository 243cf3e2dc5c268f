"""Whether a text is Python, by Python's own parser: nothing is executed, and nothing heavy is imported."""

from __future__ import annotations

import ast
import warnings


def tree_of(text: str) -> ast.Module | None:
    """The syntax tree of a text, or None where it is no Python."""
    with warnings.catch_warnings():  # an invalid escape is a warning, and still Python
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # what it is before Python 3.12
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def parses(text: str) -> bool:
    """Whether a text is Python."""
    return tree_of(text) is not None
