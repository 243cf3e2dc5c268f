"""Notebooks as files: read, normalise, hash and write them.

A normalised notebook holds nothing that differs from one run to the next without a change in its results: ids come
from the content, there are no times and no machine paths, and pictures have a palette of 64 colours.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course.curriculum import CourseError

Notebook = Any  # nbformat.NotebookNode: a dict whose keys are attributes too; nbformat carries no types

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}
KEPT_CELL_METADATA = ("tags", "wrong", "nbmake", "jupyter", "slideshow")
COLOURS = 64


class NotebookError(CourseError):
    """A file that is not a notebook this course can use."""


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
        at = f"line {error.lineno}, column {error.colno}"
        raise NotebookError(f"{name}: not a notebook: not JSON ({error.msg} at {at})") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list) or raw.get("nbformat") != 4:
        raise NotebookError(f"{name}: not a notebook: JSON, but no cells of notebook format 4")
    try:
        notebook = nbformat.from_dict(raw)
        notebook.nbformat_minor = max(5, notebook.get("nbformat_minor", 0))
        ids: set[str] = set()
        for cell in notebook.cells:
            # Older notebooks have no ids, and a cell copied in an editor may keep its twin's.
            if cell.get("id") in (None, *ids):
                cell.id = _cell_id(cell, ids)
            ids.add(cell.id)
            # On disk a text may be a list of lines.
            cell.source = _joined(cell.source)
            for output in cell.get("outputs", []):
                if "text" in output:
                    output.text = _joined(output.text)
                for mime, value in output.get("data", {}).items():
                    output.data[mime] = _joined(value) if mime.split("/")[-1][-4:] != "json" else value
        nbformat.validate(notebook)
    except (nbformat.ValidationError, AttributeError, TypeError) as error:
        first = str(error).strip().split("\n")[0]
        raise NotebookError(f"{name}: not a valid notebook: {first}") from None
    return notebook


def write(notebook: Notebook, path: Path) -> bool:
    """Write a notebook in one step, so that an interrupted write leaves the old file. Says whether it changed."""
    import nbformat

    text = nbformat.writes(notebook, version=4).rstrip("\n") + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp gives the owner alone access; a file of the course is as readable as its neighbours.
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def code_sha256(notebook: Notebook) -> str:
    """A hash of the code cells in order: the part of a notebook that decides its outputs."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def tags(cell: Any) -> list[str]:
    """The cell's tags."""
    return list(cell.get("metadata", {}).get("tags", []))


def first_code_line(cell: Any) -> str:
    """The first line of a cell that is neither empty nor a comment, or its first line."""
    lines = [line.strip() for line in cell.source.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")


def runnable(notebook: Notebook) -> list[tuple[int, Any]]:
    """The code cells that are not empty, with their index."""
    return [
        (index, cell)
        for index, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and cell.source.strip()
    ]


def held_lines(cell: Any) -> int:
    """How many claims the saved output of a cell shows as held."""
    text = "".join(
        output.get("text", "") for output in cell.get("outputs", []) if output.output_type == "stream"
    )
    return sum(line.startswith("holds") for line in text.splitlines())


def problems(notebook: Notebook) -> list[str]:
    """What a lesson's saved outputs must not hold: errors, warnings on stderr, machine paths; each with its cell."""
    found = []
    for index, cell in runnable(notebook):
        place = f"cell {index + 1} ({first_code_line(cell)[:60]})"
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"{place} ends in {output.ename}: {str(output.evalue).splitlines()[:1]}")
            elif output.get("name") == "stderr":
                first = next((line for line in output.text.splitlines() if line.strip()), "")
                found.append(f"{place} writes to stderr: {first[:160]}")
            for text in _texts(output):
                for path in machine_paths(text):
                    found.append(f"{place} shows a path of this machine: {path}")
    return found


# ---- normalising -----------------------------------------------------------------------------------------------------


def normalise(notebook: Notebook, root: Path) -> Notebook:
    """A copy of an executed notebook without anything that belongs to the run or the machine. Idempotent."""
    import nbformat

    cells, seen = [], set()
    count = 0
    for cell in notebook.cells:
        metadata = {key: cell.metadata[key] for key in KEPT_CELL_METADATA if cell.metadata.get(key)}
        new: dict[str, Any] = {
            "cell_type": cell.cell_type,
            "id": _cell_id(cell, seen),
            "metadata": metadata,
            "source": cell.source,
        }
        if cell.get("attachments"):
            new["attachments"] = cell.attachments
        if cell.cell_type == "code":
            count += bool(cell.source.strip())
            new["execution_count"] = count if cell.source.strip() else None
            new["outputs"] = _outputs(cell.get("outputs", []), count, root)
        cells.append(new)
    metadata = {"kernelspec": KERNELSPEC, "language_info": LANGUAGE}
    if "course" in notebook.metadata:
        metadata["course"] = notebook.metadata["course"]
    return nbformat.from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def _cell_id(cell: Any, seen: set[str]) -> str:
    text, copy = f"{cell.cell_type}\n{_joined(cell.source)}", 0
    while True:
        name = hashlib.sha256(f"{text}\n{copy}".encode()).hexdigest()[:8]
        if name not in seen:
            seen.add(name)
            return name
        copy += 1


def _outputs(outputs: list[Any], count: int, root: Path) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for output in _coalesced(outputs):
        new = dict(output)
        if output.output_type == "stream":
            new["text"] = mask(output.text, root)
        elif output.output_type in ("display_data", "execute_result"):
            new["metadata"] = {}
            new["data"] = {
                mime: _data(mime, value, root)
                for mime, value in output.data.items()
                if not mime.startswith("application/vnd.jupyter.widget")
            }
            if output.output_type == "execute_result":
                new["execution_count"] = count
        kept.append(new)
    return kept


def coalesce(notebook: Notebook) -> None:
    """Join pieces of one stream that follow each other, in place, and keep the last `\\r` frame of each line."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _coalesced(cell.outputs)


def _coalesced(outputs: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for output in outputs:
        last = kept[-1] if kept else None
        if (
            last is not None
            and output.output_type == last.output_type == "stream"
            and last.name == output.name
        ):
            last.text += output.text
        else:
            kept.append(copy.copy(output))
    for output in kept:
        if output.output_type == "stream":
            output.text = last_frames(output.text)
    return kept


def last_frames(text: str) -> str:
    """What a terminal would show in the end: of the frames that `\\r` puts on one line, the last."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        frames = [frame for frame in line.split("\r") if frame]
        # Frames are padded with spaces to cover longer ones before them.
        lines.append(frames[-1].rstrip(" ") if len(frames) > 1 or "\r" in line else line)
    return "\n".join(lines)


def _data(mime: str, value: Any, root: Path) -> Any:
    if mime == "image/png":
        return small_png(value)
    return mask(value, root) if isinstance(value, str) and not mime.startswith("image/jp") else value


def small_png(encoded: str) -> str:
    """A base64 PNG with a palette of 64 colours: a figure of matplotlib's takes a third of the room."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    if image.mode == "P" and len(image.getcolors(256) or []) <= COLOURS and "dpi" not in image.info:
        return encoded.replace("\n", "")
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    method = Image.Quantize.FASTOCTREE if "A" in image.getbands() else Image.Quantize.MEDIANCUT
    image = image.quantize(COLOURS, method=method, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def mask(text: str, root: Path) -> str:
    """Replace what only this machine has: the course's folder, home, temporary folders, memory addresses."""
    for pattern, new in _masks(root):
        text = pattern.sub(new, text)
    return text


_mask_cache: dict[Path, list[tuple[re.Pattern[str], str]]] = {}


def _masks(root: Path) -> list[tuple[re.Pattern[str], str]]:
    if root not in _mask_cache:
        # A root that is no course (in tests, or "/") would turn every absolute path into a relative one.
        folders: list[tuple[str, str]] = [(str(root), ""), (str(root.resolve()), "")]
        for folder, new in (
            (sys.prefix, "<python>"),
            (sysconfig.get_path("stdlib"), "<stdlib>"),
            (sys.base_prefix, "<python>"),
        ):
            if folder not in ("/", "/usr"):
                folders.append((folder, new))
        folders += [(tempfile.gettempdir(), "<tmp>"), (str(Path.home()), "~")]
        masks = []
        for folder, new in sorted(set(folders), key=lambda item: -len(item[0])):
            if folder in ("/", "\\"):
                continue
            start = rf"(?<![\w.-]){re.escape(folder)}"
            if new:
                masks.append((re.compile(rf"{start}(?![\w-])"), new))
            else:
                masks.append((re.compile(rf"{start}/"), ""))
                masks.append((re.compile(rf"{start}(?![\w-])"), "."))
        masks.append((re.compile(r"<tmp>/(?:tmp\w{8}|ipykernel_\d+)"), "<tmp>/..."))
        masks.append((re.compile(r"\bat 0x[0-9a-fA-F]+"), "at 0x..."))
        # Addresses have 10 to 12 digits; bit patterns that a lesson shows have 4, 8 or 16.
        masks.append((re.compile(r"\b0x[0-9a-fA-F]{10,12}\b"), "0x..."))
        _mask_cache[root] = masks
    return _mask_cache[root]


_MACHINE = re.compile(
    r"(?<![\w.~>-])(?:/(?:home|Users|root|tmp|private/var|var/folders)/[^\s'\"<>]+|[A-Z]:\\Users\\\S+)"
)


def machine_paths(text: str) -> list[str]:
    """Absolute paths in a text that exist on one machine only."""
    return _MACHINE.findall(text)


def _texts(output: Any) -> Iterator[str]:
    if "text" in output:
        yield output.text
    for mime, value in output.get("data", {}).items():
        if mime.startswith("text/") and isinstance(value, str):
            yield value


def _joined(value: Any) -> Any:
    return (
        "".join(value) if isinstance(value, list) and all(isinstance(line, str) for line in value) else value
    )
