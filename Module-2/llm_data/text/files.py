"""Text files as documents, read in blocks: memory does not grow with a file, nor with its longest line.

What a document is depends on the file alone. In a `.jsonl` file it is the `"text"` of each line. Elsewhere it is what
stands between two `<|endoftext|>`, where the file has one, and else what stands between two blank lines: lines that
hold nothing or white space only, of any kind that Unicode has (a no-break space, a form feed; a zero-width space is
none). A document longer than `MAX_DOCUMENT` characters is cut, after a line's end or a space where there is one.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from llm_data.text.format import HEAD, refused
from llm_data.text.json_lines import text_of
from llm_data.text.search import CorpusError, find_files, shown

__all__ = ["CorpusError", "cut_long", "find_files", "read_documents", "read_lines", "split_text"]

SEPARATOR = "<|endoftext|>"
MAX_DOCUMENT = 1 << 17
MAX_LINE = 1 << 27  # characters of a line that is needed whole, as in `.jsonl`: its memory is some three times that
BLOCK = 1 << 18
BLANK_LINE = r"\n[^\S\n]*\n"


def read_documents(path: Path, errors: str = "strict") -> Iterator[str]:
    """The documents of one file, in order; blank ones are left out.

    Args:
        path: a text file in UTF-8 (a byte-order mark is dropped), with any line ends (`\\r\\n` becomes `\\n`).
        errors: "strict" refuses bytes that are not UTF-8; "replace" puts U+FFFD in their place.

    Raises:
        CorpusError: for a file that cannot be read, or is no text in UTF-8 (another encoding, compressed, a picture),
            for undecodable bytes, and for a `.jsonl` line without a "text", or of more than `MAX_LINE` characters; the
            place is named.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise CorpusError(
            f"{shown(path)}: a .json file is not text; give one object a line in a .jsonl file, or rename it .txt"
        )
    if suffix == ".jsonl":
        lines = enumerate(read_lines(path, errors), start=1)
        parts: Iterable[str] = (
            text_of(line, f"{shown(path)}, line {number}") for number, line in lines if line and not line.isspace()
        )
    else:
        has_separator = _holds(path, SEPARATOR.encode())
        parts = split_text(_blocks(path, errors), re.escape(SEPARATOR) if has_separator else BLANK_LINE)
    for part in parts:
        if part and not part.isspace():
            yield from cut_long(part)


def read_lines(path: Path, errors: str = "strict") -> Iterator[str]:
    """The lines of one file, without their ends. Arguments and errors as for `read_documents`."""
    parts: list[str] = []
    number, size = 1, 0
    for block in _blocks(path, errors):
        first, *more = block.split("\n")
        parts.append(first)
        size += len(first)
        if size > MAX_LINE:
            raise CorpusError(
                f"{shown(path)}, line {number}: longer than {MAX_LINE:,} characters; cut it into several lines"
            )
        if more:
            # A line is joined once, at its end: adding each block to it would cost the square of its length.
            yield "".join(parts)
            yield from more[:-1]
            parts, number, size = [more[-1]], number + len(more), len(more[-1])
    yield "".join(parts)


def split_text(blocks: Iterable[str], separator: str) -> Iterator[str]:
    """What stands between matches of the pattern `separator` in the text that `blocks` make together; a part longer
    than `MAX_DOCUMENT` comes in pieces."""
    pattern, rest = re.compile(separator), ""
    for block in blocks:
        parts = pattern.split(rest + block)
        rest = parts.pop()
        yield from parts
        # A separator may lie across two blocks, so its possible beginning stays.
        start = 0
        while len(rest) - start > MAX_DOCUMENT + 100:
            end = _cut(rest, start)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    yield rest


def cut_long(text: str) -> Iterator[str]:
    """`text` in pieces of at most `MAX_DOCUMENT` characters, nothing lost."""
    start = 0
    while len(text) - start > MAX_DOCUMENT:
        end = _cut(text, start)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut(text: str, start: int) -> int:
    """Where a piece from `start` on ends at the latest: after the last line's end of its first `MAX_DOCUMENT`
    characters, or a space."""
    for mark in ("\n", " "):
        place = text.rfind(mark, start + MAX_DOCUMENT // 2, start + MAX_DOCUMENT)
        if place >= 0:
            return place + 1
    return start + MAX_DOCUMENT


def _blocks(path: Path, errors: str) -> Iterator[str]:
    """The file's text, some `BLOCK` characters at a time."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors)
    held = ""  # a carriage return at a block's end may be half of a line's end
    offset = 0
    for data in _bytes(path):
        pending = len(decoder.getstate()[0])
        try:
            text = held + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            place = offset - pending + error.start
            raise CorpusError(
                f"{shown(path)}: byte 0x{error.object[error.start]:02x} at offset {place} is not UTF-8; convert the "
                "file, or pass errors='replace'"
            ) from None
        offset += len(data)
        held = "\r" if data and text.endswith("\r") else ""
        yield text[: len(text) - len(held)].replace("\r\n", "\n").replace("\r", "\n")


def _bytes(path: Path) -> Iterator[bytes]:
    """The file's bytes, `BLOCK` at a time, and an empty block at its end."""
    try:
        # A pipe would block here, and could not be read a second time.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CorpusError(f"{shown(path)}: no regular file; give `text:` a file, a folder or a pattern")
        file = path.open("rb")
    except OSError as error:
        raise CorpusError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    with file:
        size, read, data = os.fstat(file.fileno()).st_size, 0, b"-"
        while data:
            data = _read(file, path)
            if not read:
                _refuse_other_formats(path, data)
            read += len(data)
            if not data and read < size:
                raise CorpusError(f"{shown(path)}: was cut short while it was read; run again when it is whole")
            yield data


def _read(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.read(BLOCK)
    except OSError as error:
        raise CorpusError(f"{shown(path)}: cannot be read ({error.strerror})") from None


def _refuse_other_formats(path: Path, head: bytes) -> None:
    reason = refused(head[:HEAD])
    if reason is not None:
        raise CorpusError(f"{shown(path)}: {reason}")


def _holds(path: Path, needle: bytes) -> bool:
    end = b""
    for block in _bytes(path):
        if needle in end + block:
            return True
        end = (end + block)[-len(needle) :]
    return False
