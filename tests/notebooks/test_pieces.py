"""What a lesson promises stands in it as code: the reader sees a piece before it is called, and never only imports it.

The pieces are listed in docs/curriculum.toml; that a cell and the package define the same is test_sources.py's. Beside
the list, a name in `code letters` in a lesson's outcomes or headings promises too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from course.notebook import format as notebooks
from course.plan.curriculum import find_root, load

ROOT = find_root(Path(__file__).parent)
PLAN = load(ROOT)
LESSONS = [lesson.path for lesson in PLAN.lessons if PLAN.done(lesson)]
HELPERS = re.compile(r"(annotated_transformer|simple_training|lightning_basics|llm_\w+)(\.|$)")
OUTCOMES = "After this lesson you can"


@cache
def code_cells(path: str) -> list[tuple[list[str], ast.Module]]:
    notebook = notebooks.read(ROOT / path, path)
    return [(notebooks.tags(cell), ast.parse(cell.source)) for _, cell in notebooks.runnable(notebook)]


def defined(tree: ast.AST) -> set[str]:
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@cache
def defined_in(path: str) -> frozenset[str]:
    """What the code of a lesson defines."""
    return frozenset().union(*(defined(tree) for _, tree in code_cells(path)))


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of what comes from a helper package, a module too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and HELPERS.match(node.module or ""):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names if HELPERS.match(alias.name))


def used(tree: ast.AST) -> set[str]:
    """Names that are read, called as attributes, or imported."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names | {name for _, name in imported(tree)}


def promised(path: str) -> set[str]:
    """Names in code letters in the headings and the outcomes."""
    found: set[str] = set()
    for cell in notebooks.read(ROOT / path, path).cells:
        if cell.cell_type != "markdown" or "card" in notebooks.tags(cell):
            continue
        lines = [line for line in cell.source.split("\n") if line.startswith("#")]
        if OUTCOMES in cell.source:
            lines += [line for line in cell.source.partition(OUTCOMES)[2].split("\n") if re.match(r"\s*[*-] ", line)]
        for line in lines:
            found |= {code.split("(")[0].split(".")[-1] for code in re.findall(r"`([^`]+)`", line)}
    return found


def missing(cells: list[tuple[list[str], ast.Module]], pieces: tuple[str, ...], known: set[str]) -> list[str]:
    """What is wrong with a lesson's pieces, in words.

    Args:
        cells: the lesson's code.
        pieces: of the lesson, as "module.qualname".
        known: names that lessons before it have defined.
    """
    wrong = []
    for piece in pieces:
        name = piece.rpartition(".")[2]
        shown = next((place for place, (tags, _) in enumerate(cells) if f"source:{piece}" in tags), None)
        if shown is None:
            wrong.append(f"{piece} is nowhere in it as code: no cell is tagged source:{piece}")
            continue
        # A method's name may be another class's: only plain functions and classes are looked for before.
        early = next((place for place, (_, tree) in enumerate(cells[:shown]) if name in used(tree)), None)
        is_method = piece.split(".")[-2][:1].isupper()
        before = any(name in defined(tree) for _, tree in cells[:shown])  # a first, simpler form of it
        if early is not None and not is_method and not before and name not in known:
            wrong.append(f"{piece} is used in code cell {early + 1}, and shown in code cell {shown + 1}")
    return wrong


@pytest.mark.parametrize("path", LESSONS)
def test_the_pieces_of_a_lesson_stand_in_it(path: str) -> None:
    lesson = PLAN.lesson_at(path)
    assert lesson is not None
    assert lesson.pieces, f"docs/curriculum.toml lists no pieces of {lesson.name!r}"
    known: set[str] = set()
    for other in LESSONS[: LESSONS.index(path)]:
        known |= defined_in(other)
    cells = code_cells(path)
    assert missing(cells, lesson.pieces, known) == []
    only_imported = {name for _, tree in cells for _, name in imported(tree)} - known - defined_in(path)
    assert promised(path) & only_imported == set(), "promised in a heading or an outcome, and only imported"


def test_a_piece_that_is_missing_or_late_is_seen() -> None:
    piece = ("llm_core.generate.generate",)
    tag = ["source:llm_core.generate.generate"]
    shown, call = "def generate(x):\n    return x", "generate(1)"

    def cells(*sources: tuple[list[str], str]) -> list[tuple[list[str], ast.Module]]:
        return [(tags, ast.parse(source)) for tags, source in sources]

    assert missing(cells((tag, shown), ([], call)), piece, set()) == []
    assert "nowhere" in missing(cells(([], call)), piece, set())[0]
    assert "nowhere" in missing(cells(([], shown), ([], call)), piece, set())[0]
    early = cells(([], "from llm_core import generate"), ([], call), (tag, shown))
    assert "is used in code cell 1" in missing(early, piece, set())[0]
    assert missing(early, piece, {"generate"}) == []
    assert missing(cells(([], "def generate(x): ..."), ([], call), (tag, shown)), piece, set()) == []
