"""Text files as documents, read in blocks: memory does not grow with a file, nor with its longest line.

What a document is depends on the file alone. In a `.jsonl` file it is the `"text"` of each line. Elsewhere it is what
stands between two `<|endoftext|>`, where the file has one, and else what stands between two blank lines (spaces do not
count). A document longer than `MAX_DOCUMENT` characters is cut, after a line's end or a space where there is one.
"""

from __future__ import annotations

import codecs
import glob
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

SEPARATOR = "<|endoftext|>"
MAX_DOCUMENT = 1 << 17
BLOCK = 1 << 18
BLANK_LINE = r"\n[ \t]*\n"
SUFFIXES = (".jsonl", ".md", ".rst", ".txt")


class CorpusError(ValueError):
    """A corpus that cannot be read as asked; the message is one line and says what to do."""


def find_files(path: Path | str) -> list[Path]:
    """The text files that `path` means: a file, a folder (all `.txt`, `.md`, `.rst` and `.jsonl` below it), or a
    glob pattern (`notes/**/*.tex`), sorted by name.

    Raises:
        CorpusError: when nothing is there, or a folder holds no text file.
    """
    if not str(path):
        raise CorpusError("text: names no file; write text:PATH")
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        found = sorted(file for file in given.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
        if not found:
            kinds = sorted({file.suffix or file.name for file in given.rglob("*") if file.is_file()})[:5]
            raise CorpusError(
                f"{path}: no {', '.join(SUFFIXES)} file below this folder (it has {', '.join(kinds) or 'no files'}); "
                f"name others by a pattern: text:{path}/**/*.py"
            )
        return found
    found = sorted(Path(file) for file in glob.glob(str(given), recursive=True) if Path(file).is_file())
    if not found:
        raise CorpusError(f"{path}: no such file or folder; give `text:` a path from here, or a pattern in it")
    return found


def read_documents(path: Path, errors: str = "strict") -> Iterator[str]:
    """The documents of one file, in order; blank ones are left out.

    Args:
        path: a text file in UTF-8 (a byte-order mark is dropped), with any line ends (`\\r\\n` becomes `\\n`).
        errors: "strict" refuses bytes that are not UTF-8; "replace" puts U+FFFD in their place.

    Raises:
        CorpusError: for undecodable bytes, and for a `.jsonl` line without a "text"; the place is named.
    """
    if path.suffix.lower() == ".json":
        raise CorpusError(
            f"{path}: a .json file is not text; give one object a line in a .jsonl file, or rename it .txt"
        )
    if path.suffix.lower() == ".jsonl":
        parts: Iterable[str] = _json_lines(path, errors)
    else:
        has_separator = _holds(path, SEPARATOR.encode())
        parts = split_text(_blocks(path, errors), re.escape(SEPARATOR) if has_separator else BLANK_LINE)
    for part in parts:
        if part and not part.isspace():
            yield from cut_long(part)


def split_text(blocks: Iterable[str], separator: str) -> Iterator[str]:
    """What stands between matches of the pattern `separator` in the text that `blocks` make together; a part longer
    than `MAX_DOCUMENT` comes in pieces."""
    pattern, rest = re.compile(separator), ""
    for block in blocks:
        parts = pattern.split(rest + block)
        rest = parts.pop()
        yield from parts
        # A separator may lie across two blocks, so its possible beginning stays.
        while len(rest) > MAX_DOCUMENT + 100:
            end = _cut(rest)
            yield rest[:end]
            rest = rest[end:]
    yield rest


def cut_long(text: str) -> Iterator[str]:
    """`text` in pieces of at most `MAX_DOCUMENT` characters, nothing lost."""
    start = 0
    while len(text) - start > MAX_DOCUMENT:
        end = start + _cut(text[start : start + MAX_DOCUMENT])
        yield text[start:end]
        start = end
    yield text[start:]


def _cut(text: str) -> int:
    """Where to cut at the latest: after the last line's end of the first `MAX_DOCUMENT` characters, or a space."""
    for mark in ("\n", " "):
        place = text.rfind(mark, MAX_DOCUMENT // 2, MAX_DOCUMENT)
        if place >= 0:
            return place + 1
    return MAX_DOCUMENT


def _blocks(path: Path, errors: str) -> Iterator[str]:
    """The file's text, some `BLOCK` characters at a time."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors)
    held = ""  # a carriage return at a block's end may be half of a line's end
    offset = 0
    with path.open("rb") as file:
        while True:
            data = file.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                text = held + decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                place = offset - pending + error.start
                raise CorpusError(
                    f"{path}: byte 0x{error.object[error.start]:02x} at offset {place} is not UTF-8; convert the file, "
                    "or pass errors='replace'"
                ) from None
            offset += len(data)
            held = "\r" if data and text.endswith("\r") else ""
            yield text[: len(text) - len(held)].replace("\r\n", "\n").replace("\r", "\n")
            if not data:
                return


def _json_lines(path: Path, errors: str) -> Iterator[str]:
    line = ""
    number = 0
    for block in (*_blocks(path, errors), "\n"):
        *lines, line = (line + block).split("\n")
        for text in lines:
            number += 1
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except ValueError:
                record = None
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise CorpusError(f'{path}, line {number}: expected a JSON object with a string under "text"')
            try:
                record["text"].encode()
            except UnicodeEncodeError:
                raise CorpusError(
                    f'{path}, line {number}: its "text" has half a surrogate pair, no character'
                ) from None
            yield record["text"]


def _holds(path: Path, needle: bytes) -> bool:
    with path.open("rb") as file:
        end = b""
        while block := file.read(BLOCK):
            if needle in end + block:
                return True
            end = block[-len(needle) :]
    return False
