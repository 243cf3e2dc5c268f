"""Notebooks as files: read, check, hash and write them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from course.errors import NotebookError
from course.files import write_text

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON escapes it; a whole pair is good

Notebook = Any  # nbformat.NotebookNode: a dict whose keys are attributes too; nbformat carries no types


def read(path: Path, name: str | None = None) -> Notebook:
    """Read a notebook of format 4.

    Raises:
        NotebookError: naming the file (as `name`) and what is wrong with it.
    """
    import nbformat

    name = name or path.name
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotebookError(f"{name}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NotebookError(f"{name}: not a notebook: {error}") from None
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise NotebookError(f"{name}: not a notebook: not JSON ({error.msg} at {where})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise NotebookError(f"{name}: not a notebook: {error}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list) or raw.get("nbformat") != 4:
        raise NotebookError(f"{name}: not a notebook: JSON, but no cells of notebook format 4")
    try:
        notebook = nbformat.from_dict(raw)
        notebook.nbformat_minor = max(5, notebook.get("nbformat_minor", 0))
        ids: dict[str, int] = {}
        for cell in notebook.cells:
            # Older notebooks have no ids, and a cell copied in an editor may keep its twin's.
            if cell.get("id") is None or cell.id in ids:
                cell.id = cell_id(cell, ids)
            ids.setdefault(cell.id, 0)
            # On disk a text may be a list of lines.
            cell.source = _joined(cell.source)
            for output in cell.get("outputs", []):
                if "text" in output:
                    output.text = _joined(output.text)
                for mime, value in output.get("data", {}).items():
                    output.data[mime] = _joined(value) if mime.split("/")[-1][-4:] != "json" else value
        nbformat.validate(notebook)
        if _HALF_PAIR.search(text):
            json.dumps(raw, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotebookError(f"{name}: not a valid notebook: half of a surrogate pair ({error.reason})") from None
    except (nbformat.ValidationError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        first = str(error).strip().split("\n")[0]
        raise NotebookError(f"{name}: not a valid notebook: {first}") from None
    return notebook


def write(notebook: Notebook, path: Path) -> bool:
    """Write a notebook in one step, which no interruption leaves half done. Says whether the file changed."""
    import nbformat

    text = nbformat.writes(notebook, version=4).rstrip("\n") + "\n"
    if path.is_file() and path.read_bytes() == text.encode("utf-8"):
        return False
    write_text(path, text)
    return True


def code_sha256(notebook: Notebook) -> str:
    """A hash of the code cells in order: the part of a notebook that decides its outputs."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def tags(cell: Any) -> list[str]:
    """The cell's tags."""
    return list(cell.get("metadata", {}).get("tags", []))


def first_code_line(cell: Any) -> str:
    """The first line of a cell that is neither empty nor a comment, or its first line."""
    # Not `splitlines`, here and below: it also cuts at characters that end no line of Python or of an output.
    lines = [line.strip() for line in cell.source.split("\n") if line.strip()]
    return next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")


def runnable(notebook: Notebook) -> list[tuple[int, Any]]:
    """The code cells that are not empty, with their index."""
    return [
        (index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()
    ]


def cell_id(cell: Any, seen: dict[str, int]) -> str:
    """An id made from the cell's kind and source, told apart from those in `seen`, to which it is added.

    `seen` also holds how many cells of a text there were, so that many equal cells are not compared with each other.
    """
    text = f"{cell.cell_type}\n{_joined(cell.source)}"
    copy = seen.get(text, 0)
    while True:
        name = hashlib.sha256(f"{text}\n{copy}".encode()).hexdigest()[:8]
        copy += 1
        if name not in seen:
            seen[name], seen[text] = 0, copy
            return name


def _joined(value: Any) -> Any:
    return "".join(value) if isinstance(value, list) and all(isinstance(line, str) for line in value) else value
