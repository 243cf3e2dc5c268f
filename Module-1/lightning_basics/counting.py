"""Costs that can be counted, and so asserted: lines of code, and calls of Python functions."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def code_lines(definition: Any) -> int:
    """Lines of a function, class or module in one standard form, without docstrings, comments and blank lines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(definition)))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return len([line for line in ast.unparse(tree).splitlines() if line.strip()])


def python_calls(function: Callable[[], object]) -> int:
    """How many Python functions are called while `function()` runs, in this thread; builtins are not counted."""
    count = 0
    thread = threading.get_ident()

    def tracer(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if event == "call" and threading.get_ident() == thread:
            count += 1

    before = sys.getprofile()
    sys.setprofile(tracer)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count
