"""The standard library's own functions as a corpus: text that every machine has, and whose samples can be judged.

A sample of a model trained on whole files hardly ever parses, because it breaks off; a function has an end that a
model can learn.
"""

from __future__ import annotations

import ast
import json
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

from lightning_basics.data import source_files

from llm_data.whole_files import checksum, is_sealed, seal, write_in_place
from llm_data.workspace import cache_folder, digest, locked

MAX_FUNCTION = 1200
MIN_DOCSTRING = 80  # below are labels, hardly sentences
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def read_modules() -> Iterator[str]:
    """The source of each module of the running Python's library, without tests (see `source_files`).

    A file that its own declared encoding cannot decode is no Python source, and left out.
    """
    for path in source_files():
        try:
            with tokenize.open(path) as file:
                source = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        if source.strip():
            yield source


def functions_of(source: str, max_length: int = MAX_FUNCTION) -> Iterator[str]:
    """Each function and method of a module, in Python's canonical form: no comments, docstrings or decorators.

    Args:
        source: Python source.
        max_length: longer functions are left out, in characters.

    Raises:
        SyntaxError: when `source` is not Python.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            text = ast.unparse(_bare(node))
            if len(text) <= max_length:
                yield text


def read_functions() -> Iterator[str]:
    """The functions of all modules, each text once, at its first place.

    Taking them apart needs some seconds, so the first call leaves them in the course's cache.
    """
    return _kept("python-functions", functions_of)


def docstrings_of(source: str, min_length: int = MIN_DOCSTRING) -> Iterator[str]:
    """Each docstring of a module, unindented: English prose about code.

    Args:
        source: Python source.
        min_length: shorter ones are left out, in characters.

    Raises:
        SyntaxError: when `source` is not Python.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (*Function, ast.ClassDef, ast.Module)):
            text = (ast.get_docstring(node) or "").strip()
            if len(text) >= min_length:
                yield text


def read_docstrings() -> Iterator[str]:
    """The docstrings of all modules, each text once, at its first place; kept as the functions are."""
    return _kept("python-docstrings", docstrings_of)


def _kept(name: str, parts_of: Callable[[str], Iterator[str]]) -> Iterator[str]:
    folder = cache_folder() / name
    path = folder / f"{library_fingerprint()}.jsonl"
    seal_path = path.with_suffix(".seal")
    if not is_sealed(seal_path):
        with locked(folder):
            if not is_sealed(seal_path):  # another process may have made it meanwhile
                write_in_place(path, lambda unfinished: _write_lines(unfinished, _distinct(parts_of)))
                seal(seal_path, [path])
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _write_lines(path: Path, texts: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps(text) + "\n")


def library_fingerprint() -> str:
    """Changes with the Python version, with any of its files, and with the code that reads them."""
    files = source_files()
    return digest(sys.version, [path.name for path in files], checksum((*files, Path(__file__))))


def _distinct(parts_of: Callable[[str], Iterator[str]]) -> Iterator[str]:
    seen: set[str] = set()
    for source in read_modules():
        try:
            parts = list(parts_of(source))
        except (SyntaxError, ValueError):  # written wrong on purpose, for the library's own checks
            continue
        for text in parts:
            if text not in seen:
                seen.add(text)
                yield text


def _bare(function: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
    """The function without decorators, and without docstrings, its inner functions' and classes' included."""
    function.decorator_list = []
    for node in ast.walk(function):
        if isinstance(node, (*Function, ast.ClassDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return function
