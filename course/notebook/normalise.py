"""What a notebook is saved as: without anything that belongs to the run or the machine.

Ids come from the content, there are no times and no machine paths, and pictures have a palette of 64 colours,
so that two runs with the same results give the same file.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import re
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from course.errors import NotebookError
from course.folders import PREFIX
from course.notebook.format import Notebook, cell_id

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}
KEPT_CELL_METADATA = ("tags", "wrong", "nbmake", "jupyter", "slideshow")
COLOURS = 64
LARGEST_PICTURE = 30_000_000  # pixels; a figure of the course has half a million


def normalise(notebook: Notebook, root: Path) -> Notebook:
    """A copy of an executed notebook without anything that belongs to the run or the machine. Idempotent."""
    import nbformat

    cells: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    count = 0
    for cell in notebook.cells:
        metadata = {key: cell.metadata[key] for key in KEPT_CELL_METADATA if cell.metadata.get(key)}
        new: dict[str, Any] = {
            "cell_type": cell.cell_type,
            "id": cell_id(cell, seen),
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
    """Join pieces of one stream, in place, and keep the last `\\r` frame of each line."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _coalesced(cell.outputs)


def _coalesced(outputs: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for output in outputs:
        last = kept[-1] if kept else None
        if last is not None and output.output_type == last.output_type == "stream" and last.name == output.name:
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


def small_png(encoded: Any) -> str:
    """A base64 PNG with a palette of 64 colours: a figure of matplotlib's takes a third of the room.

    What comes back is an encoding of our own, of a picture that was decoded to its last pixel: an output may hold
    anything, and this one reaches a report as markup.

    Raises:
        NotebookError: when `encoded` is no PNG, a broken one, or one too large to look at.
    """
    try:
        return _small_png(base64.b64decode("".join(encoded.split()), validate=True))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more for a broken file
        said = str(error).split("\n")[0]
        raise NotebookError(f"an output's image/png is no picture ({type(error).__name__}: {said[:80]})") from None


def _small_png(data: bytes) -> str:
    from PIL import Image

    image: Image.Image = Image.open(io.BytesIO(data), formats=["PNG"])
    if image.width * image.height > LARGEST_PICTURE:
        raise ValueError(f"{image.width} x {image.height} pixels")
    image.load()
    if image.mode == "P" and len(image.getcolors(256) or []) <= COLOURS and "dpi" not in image.info:
        return base64.b64encode(data).decode()
    if image.mode not in ("RGB", "RGBA", "L"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
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
        folders: list[tuple[str, str]] = [(str(root), ""), (str(root.resolve()), "")]
        for folder, new in (
            (sys.prefix, "<python>"),
            (sysconfig.get_path("stdlib"), "<stdlib>"),
            (sys.base_prefix, "<python>"),
        ):
            if folder not in ("/", "/usr"):
                folders.append((folder, new))
        folders.append((tempfile.gettempdir(), "<tmp>"))
        with contextlib.suppress(RuntimeError):  # a user without a home has no home to hide
            folders.append((str(Path.home()), "~"))
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
        masks.append((re.compile(rf"<tmp>/{PREFIX}\w{{8}}(?![\w-])"), "<tmp>"))
        masks.append((re.compile(r"<tmp>/(?:tmp\w{8}|ipykernel_\d+)"), "<tmp>/..."))
        masks.append((re.compile(r"\bat 0x[0-9a-fA-F]+"), "at 0x..."))
        # Addresses have 10 to 12 digits; bit patterns that a lesson shows have 4, 8 or 16.
        masks.append((re.compile(r"\b0x[0-9a-fA-F]{10,12}\b"), "0x..."))
        _mask_cache[root] = masks
    return _mask_cache[root]
