"""A cost that can be counted, and so asserted: lines of code."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any


def code_lines(definition: Any) -> int:
    """Lines of a function, class or module in one standard form, without docstrings, comments and blank lines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(definition)))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return len([line for line in ast.unparse(tree).splitlines() if line.strip()])
