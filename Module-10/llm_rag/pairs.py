"""Questions with known answers: docstrings of Python's library, each with the function that it describes.

A docstring tells what its function does; the function without it is what is to be found. Its own name gives it away to
a search by words, so a pair also has a form without: `f` stands in the name's place, everywhere in the function.
"""

from __future__ import annotations

import ast
import json
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_basics.data import is_validation, source_files
from llm_data.text.parsing import tree_of
from llm_data.text.python_source import library_fingerprint
from llm_data.whole_files import checksum, is_sealed, seal, write_in_place
from llm_data.workspace import cache_folder, digest, locked

LEAST_DOCSTRING = 40  # of its first paragraph: below it is a label
MOST_CODE = 2000
HIDDEN = "f"


@dataclass(frozen=True)
class Pair:
    """A docstring and its function.

    Attributes:
        docstring: its first paragraph, on one line.
        code: the function without docstrings and decorators, as Python writes it.
        name: of the function.
        module: its file, relative to the library.
    """

    docstring: str
    code: str
    name: str
    module: str

    @property
    def hidden(self) -> str:
        """The code with `f` in the place of the function's own name."""
        return re.sub(rf"\b{re.escape(self.name)}\b", HIDDEN, self.code)


def library_pairs() -> list[Pair]:
    """The pairs of the running Python's library, no docstring and no code twice, in an order that never changes.

    Taking it apart needs some seconds, so the first call leaves the pairs in the course's cache.
    """
    folder = cache_folder() / "docstring-pairs"
    path = folder / f"{digest(library_fingerprint(), checksum((Path(__file__),)))}.jsonl"
    seal_path = path.with_suffix(".seal")
    if not is_sealed(seal_path):
        with locked(folder):
            if not is_sealed(seal_path):  # another process may have made it meanwhile
                lines = "".join(json.dumps(asdict(pair)) + "\n" for pair in _distinct(_all()))
                write_in_place(path, lambda unfinished: unfinished.write_text(lines, encoding="utf-8"))
                seal(seal_path, [path])
    with path.open(encoding="utf-8") as file:
        return [Pair(**json.loads(line)) for line in file]


def split(pairs: Sequence[Pair], test_percent: int = 20) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from and pairs to be tested on, of different files: functions of one file resemble each other."""
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[is_validation(pair.module, test_percent)].append(pair)
    return sides


def pairs_of(source: str, module: str = "") -> Iterator[Pair]:
    """The pairs of one file; none where it is no Python."""
    tree = tree_of(source)
    for node in ast.walk(tree) if tree else ():
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        told = " ".join((ast.get_docstring(node) or "").strip().split("\n\n")[0].split())
        if len(told) < LEAST_DOCSTRING:
            continue
        node.decorator_list = []
        for inner in ast.walk(node):
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                has_docstring = ast.get_docstring(inner, clean=False) is not None
                inner.body = inner.body[has_docstring:] or [ast.Pass()]
        code = ast.unparse(node)
        does_nothing = len(node.body) == 1 and isinstance(node.body[0], (ast.Pass, ast.Raise))
        if not does_nothing and len(code) <= MOST_CODE:
            yield Pair(told, code, node.name, module)


def _all() -> Iterator[Pair]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in source_files():
        try:
            source = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield from pairs_of(source, path.relative_to(root).as_posix())


def _distinct(pairs: Iterator[Pair]) -> Iterator[Pair]:
    seen: set[str] = set()
    for pair in pairs:
        if pair.docstring not in seen and pair.code not in seen:
            seen |= {pair.docstring, pair.code}
            yield pair
