"""The documents of a folder, one at a time, and by name what is none.

Files are known by their content: a time on a file says little after a copy, a checkout or a restored backup. Hidden
files and folders (their names begin with a dot) are no part of a folder, as for `text:` corpora.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_data.text.format import HEAD, refused
from llm_data.text.search import shown

MAX_BYTES = 4 << 20  # a document is held whole: this bounds the memory of an indexing run


@dataclass(frozen=True)
class Document:
    """A text of a folder.

    Attributes:
        path: relative to the folder, with "/" between its parts.
        text: without byte-order mark, every line's end a "\\n".
        sha256: of the file's bytes.
    """

    path: str
    text: str
    sha256: str


@dataclass(frozen=True)
class LeftOut:
    """A file that is no document.

    Attributes:
        path: relative to the folder, as it can be printed.
        reason: in a few words.
    """

    path: str
    reason: str


def read_folder(
    folder: Path | str, max_bytes: int = MAX_BYTES, exclude: Sequence[Path] = ()
) -> Iterator[Document | LeftOut]:
    """Every file below a folder in the order of the paths: a document, or why it is none.

    One document is held at a time, and 32 bytes of each that went before, by which its copies are known.

    Args:
        folder: links inside it that lead out of it are not followed, and links to folders never.
        max_bytes: larger files are left out.
        exclude: files that are passed over without a word, such as the store itself.

    Raises:
        ValueError: when there is no such folder, it may not be read, or `max_bytes` is below 1.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        what = "a file" if root.exists() else "no such folder"
        raise ValueError(f"{shown(folder)}: {what}; give the folder that holds the documents")
    if max_bytes < 1:
        raise ValueError(f"max_bytes={max_bytes} must be at least 1")
    root = root.resolve()
    passed = {os.path.realpath(path) for path in exclude}
    seen: dict[bytes, str] = {}
    for entry in _files(root):
        if isinstance(entry, LeftOut):
            yield entry
        elif os.path.realpath(entry) not in passed:
            yield _read(root, entry, max_bytes, seen)


def _files(root: Path) -> Iterator[Path | LeftOut]:
    """Without recursion, so that any depth will do; a folder's own files come where its name stands in the order."""
    waiting = [root]
    while waiting:
        place = waiting.pop()
        if place != root and (place.is_symlink() or not place.is_dir()):
            yield LeftOut(_name(root, place), "a link to a folder, which is not followed") if place.is_dir() else place
            continue
        try:
            names = sorted(name for name in os.listdir(place) if not name.startswith("."))
        except OSError as error:
            if place == root:
                raise ValueError(f"{shown(root)}: cannot be read ({error.strerror}); make it readable") from None
            yield LeftOut(_name(root, place), f"a folder that cannot be read ({error.strerror})")
            continue
        waiting += [place / name for name in reversed(names)]


def _read(root: Path, path: Path, max_bytes: int, seen: dict[bytes, str]) -> Document | LeftOut:
    name = _name(root, path)
    try:
        real = path.resolve()
        if not real.is_relative_to(root):
            return LeftOut(name, "a link that leaves the folder")
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            return LeftOut(name, "no regular file")
        if facts.st_size > max_bytes:
            return LeftOut(name, f"{facts.st_size:,} bytes, more than {max_bytes:,}")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)  # it may have grown meanwhile
    except (OSError, RuntimeError) as error:
        return LeftOut(name, f"cannot be read ({getattr(error, 'strerror', None) or 'a link that leads to itself'})")
    if len(data) > max_bytes:
        return LeftOut(name, f"more than {max_bytes:,} bytes")
    reason = _no_text(data)
    if reason:
        return LeftOut(name, reason)
    if name != path.relative_to(root).as_posix():
        return LeftOut(name, "its name is not UTF-8 or cannot be printed; rename it")
    sum_of = hashlib.sha256(data)
    first = seen.setdefault(sum_of.digest(), name)
    if first != name:
        return LeftOut(name, f"the same as {first}")
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    return Document(name, text, sum_of.hexdigest())


def _no_text(data: bytes) -> str:
    """Why these bytes are no text with anything in it; empty where they are one."""
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        return "empty"
    known = refused(data[:HEAD])  # a picture, compressed, another encoding
    if known:
        return known.split(";")[0]
    if b"\0" in data:
        return "no text (it has NUL bytes)"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"no text (byte {error.start} is not UTF-8)"
    return ""


def _name(root: Path, path: Path) -> str:
    return shown(path.relative_to(root).as_posix())
