"""Where a lesson shows a definition that a helper package also holds, the two say the same.

A code cell tagged `source:MODULE.QUALNAME` holds exactly one function or class besides its imports: the one of that
name in that module. Compared is what Python runs: comments, docstrings and annotations do not count.
"""

import ast
import copy
import importlib
import inspect
import json
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PREFIX = "source:"


class _Bare(ast.NodeTransformer):
    """Drops docstrings and annotations."""

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node)

    def visit_FunctionDef(self, node):
        node.returns = None
        return self._body(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        return self._body(node)

    def _body(self, node):
        self.generic_visit(node)
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = node.body[1:]
        node.body = node.body or [ast.Pass()]
        return node


def normalised(definition):
    """The text of a definition as Python runs it."""
    return ast.unparse(ast.fix_missing_locations(_Bare().visit(definition)))


@cache
def source_of(module):
    """A module's source as Python's parser sees it."""
    return ast.parse(inspect.getsource(module)).body


def package_definition(target):
    """The definition behind `MODULE.QUALNAME`; the module is the longest importable beginning."""
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        body = source_of(module)
        for name in parts[end:]:
            found = [node for node in body if getattr(node, "name", None) == name]
            assert found, f"{module.__name__} has no definition {name}"
            body = found[0].body
        return copy.deepcopy(found[0])
    raise AssertionError(f"no module begins {target}")


def cell_definition(source, target):
    """The one definition in a cell, which may import beside it."""
    body = [node for node in ast.parse(source).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(body) == 1 and isinstance(body[0], ast.FunctionDef | ast.ClassDef), (
        f"a cell tagged {PREFIX}{target} holds one definition besides imports"
    )
    return body[0]


def tagged_cells():
    for path in sorted(ROOT.glob("*/notebooks/*.ipynb")) + sorted(ROOT.glob("*/solutions/*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for tag in cell["metadata"].get("tags", []):
                if tag.startswith(PREFIX):
                    yield path.relative_to(ROOT), tag.removeprefix(PREFIX), "".join(cell["source"])


CELLS = list(tagged_cells())


@pytest.mark.parametrize(
    ("target", "source"), [cell[1:] for cell in CELLS], ids=[f"{cell[0].stem}: {cell[1]}" for cell in CELLS]
)
def test_lesson_and_package_define_the_same(target, source):
    assert normalised(cell_definition(source, target)) == normalised(package_definition(target))


def test_a_difference_is_seen_and_what_does_not_count_is_not():
    package = 'def f(x: int, y: int = 1) -> int:\n    """Doc."""\n    z: int = x  # why\n    return z + y\n'
    lesson = "import math\n\ndef f(x, y=1):\n    z = x\n    return z + y\n"
    reference = normalised(ast.parse(package).body[0])
    assert normalised(cell_definition(lesson, "m.f")) == reference
    for mutation in (("z + y", "z - y"), ("y=1", "y=2"), ("def f", "def g")):
        assert normalised(cell_definition(lesson.replace(*mutation), "m.f")) != reference
    with pytest.raises(AssertionError, match="one definition"):
        cell_definition(lesson + "print(f(1))\n", "m.f")
    with pytest.raises(AssertionError, match="has no definition nothing"):
        package_definition("course.check.nothing")
