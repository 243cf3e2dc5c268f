"""Which files a path means: a file, the text files below a folder, or what a pattern matches.

Each real file is found once, however many links lead to it, so links that form a loop end. Hidden files and folders
(their names begin with a dot: `.git`, `.ipynb_checkpoints`) are left out, unless the path itself names one. Links that
lead nowhere, pipes, sockets and devices below a folder are no text and are left out; nothing else is: a folder that may
not be read is an error. The order is that of the paths, the same on every machine.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

SUFFIXES = (".jsonl", ".md", ".rst", ".txt")


class CorpusError(ValueError):
    """A corpus that cannot be read as asked; the message is one line and says what to do."""


def find_files(path: Path | str) -> list[Path]:
    """The text files that `path` means: a file, a folder (all `.txt`, `.md`, `.rst` and `.jsonl` below it), or a
    glob pattern (`notes/**/*.tex`), sorted by name.

    Raises:
        CorpusError: when nothing is there, a folder holds no text file or may not be read, or the path is none.
    """
    if not str(path):
        raise CorpusError("text: names no file; write text:PATH")
    try:
        given = Path(path).expanduser()
        kind = _kind(given)
    except (OSError, RuntimeError, ValueError) as error:  # too long, an unknown ~user, a NUL
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).rstrip(".")
        raise CorpusError(f"{shown(path)[:200]}: no path that can be read ({reason}); give `text:` another") from None
    if kind == "file":
        return [given]
    if kind == "folder":
        every = _once(_walk(str(given), os.path.realpath(given), set()))
        found = [file for file in every if file.suffix.lower() in SUFFIXES]
        if not found:
            kinds = sorted({file.suffix or file.name for file in every})[:5]
            raise CorpusError(
                f"{shown(path)}: no {', '.join(SUFFIXES)} file below this folder (it has "
                f"{shown(', '.join(kinds)) or 'no files'}); name others by a pattern: text:{shown(path)}/**/*.py"
            )
        return found
    if kind != "nothing":
        raise CorpusError(f"{shown(path)}: {kind}; give `text:` a file, a folder or a pattern")
    found = _once(_matching(given)) if glob.has_magic(str(given)) else []
    if not found:
        raise CorpusError(f"{shown(path)}: no such file or folder; give `text:` a path from here, or a pattern in it")
    return found


def shown(path: Path | str) -> str:
    """A path as a message may hold it: on one line, and of characters that can be printed."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in str(path)
    )


Found = tuple[str, str]  # a file's path as it was come by, and the real one


def _kind(path: Path) -> str:
    """ "file", "folder", "nothing", or in words what else is there."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "a link that leads to nothing" if path.is_symlink() else "nothing"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "a pipe, socket or device, which cannot be read twice"


def _once(found: Iterator[Found]) -> list[Path]:
    """The paths in order, the first one of each real file."""
    by_real: dict[str, Path] = {}
    for path, real in sorted((Path(path), real) for path, real in found):
        by_real.setdefault(real, path)
    return list(by_real.values())


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise CorpusError(
            f"{shown(folder)}: this folder cannot be read ({error.strerror}); make it readable, or name files beside it"
        ) from None


def _mode(entry: os.DirEntry[str]) -> int:
    """What the entry is, links followed; 0 for a link that leads to nothing, or to itself."""
    try:
        return entry.stat().st_mode
    except OSError:
        return 0


def _walk(folder: str, real: str, seen: set[str]) -> Iterator[Found]:
    """All files below a folder, hidden ones left out."""
    for below, real_below in _folders(folder, real, seen):
        for entry in _entries(below):
            if not entry.name.startswith(".") and stat.S_ISREG(_mode(entry)):
                yield entry.path, _real(entry, real_below)


def _folders(folder: str, real: str, seen: set[str]) -> Iterator[Found]:
    """The folder and all below it, each real one once; without recursion, so that any depth will do."""
    waiting = [(folder, real)]
    while waiting:
        folder, real = waiting.pop()
        if real in seen:
            continue
        seen.add(real)
        yield folder, real
        inner = [entry for entry in _entries(folder) if not entry.name.startswith(".") and stat.S_ISDIR(_mode(entry))]
        # Real folders before links to them, so that a file goes by its own name where it has one.
        inner.sort(key=lambda entry: (entry.is_symlink(), entry.name), reverse=True)
        waiting += [(entry.path, _real(entry, real)) for entry in inner]


def _real(entry: os.DirEntry[str], real_folder: str) -> str:
    return os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real_folder, entry.name)


def _matching(pattern: Path) -> Iterator[Found]:
    """The files that a pattern matches; `**` stands for any folders, as in `glob`."""
    start = pattern.anchor or os.curdir
    parts = pattern.parts[1:] if pattern.anchor else pattern.parts
    yield from _expand("" if start == os.curdir else start, list(parts))


def _expand(folder: str, parts: list[str]) -> Iterator[Found]:
    here = folder or os.curdir
    head, rest = parts[0], parts[1:]
    if head == "**":
        real = os.path.realpath(here)
        if not rest:
            yield from _walk(here, real, set())
            return
        for below, _ in _folders(here, real, set()):
            yield from _expand("" if below == os.curdir else below.removeprefix(f"{os.curdir}{os.sep}"), rest)
    elif not glob.has_magic(head):
        yield from _reached(os.path.join(folder, head), rest)
    elif os.path.isdir(here):
        for entry in _entries(here):
            hidden = entry.name.startswith(".") and not head.startswith(".")
            if not hidden and fnmatchcase(entry.name, head):
                yield from _reached(os.path.join(folder, entry.name), rest)


def _reached(path: str, rest: list[str]) -> Iterator[Found]:
    if not rest and os.path.isfile(path):
        yield path, os.path.realpath(path)
    elif rest and os.path.isdir(path):
        yield from _expand(path, rest)
