"""Passages of a document: windows that end where a thought does, with exact places.

Sizes are in characters. A tokeniser's count would tie a store to one model, and a word has no length that a model's
window could rely on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Where a passage may end, best first; each match ends where the next passage could begin.
PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]?\s+|\n")
SPACE = re.compile(r"\s+")
DEFINITION = re.compile(r"\n(?=[^\S\n]{0,4}(?:@|def |async def |class ))")
PROSE = (PARAGRAPH, SENTENCE, SPACE)
PYTHON = (DEFINITION, *PROSE)
MIN_SIZE = 16


@dataclass(frozen=True)
class Chunking:
    """How documents are cut.

    Attributes:
        size: the most characters of a passage.
        overlap: characters of a passage that the next one repeats, at most.

    Raises:
        ValueError: for sizes that cannot be.
    """

    size: int = 600
    overlap: int = 100

    def __post_init__(self) -> None:
        if self.size < MIN_SIZE:
            raise ValueError(f"size={self.size} must be at least {MIN_SIZE} characters")
        if not 0 <= self.overlap <= self.size // 2:
            raise ValueError(f"overlap={self.overlap} must be from 0 to {self.size // 2}, half of size={self.size}")


@dataclass(frozen=True)
class Chunk:
    """A passage.

    Attributes:
        document: path of its document.
        start, stop: its place in the document's text.
        text: `text[start:stop]` of the document.
    """

    document: str
    start: int
    stop: int
    text: str


def chunks_of(text: str, document: str = "", chunking: Chunking | None = None) -> Iterator[Chunk]:
    """The passages of a text, in order. Every character that is no white space is in at least one.

    A passage ends at the last bound of the best kind in its second half: paragraph, then sentence or line, then space,
    else at `size`. For a document whose name ends in ".py" a function's or class's first line comes before these.

    Args:
        text: of the document.
        document: its path.
        chunking: sizes; the default ones if None.
    """
    chunking = chunking or Chunking()
    bounds = PYTHON if document.endswith(".py") else PROSE
    start = 0
    while start < len(text):
        stop = _end(text, start, chunking.size, bounds)
        if not text[start:stop].isspace():
            yield Chunk(document, start, stop, text[start:stop])
        if stop == len(text):
            return
        start = _begin(text, stop - chunking.overlap, stop)


def _end(text: str, start: int, size: int, bounds: tuple[re.Pattern[str], ...]) -> int:
    if len(text) - start <= size:
        return len(text)
    for bound in bounds:
        last = None
        for match in bound.finditer(text, start + size // 2, start + size):
            last = match
        # A match at the very beginning of the half could leave no room to move on.
        if last is not None and last.end() > start + size // 2:
            return last.end()
    return start + size


def _begin(text: str, earliest: int, stop: int) -> int:
    """Where the next passage begins: at a sentence or at least a word in the overlap, or right behind the last."""
    for bound in (SENTENCE, SPACE):
        match = bound.search(text, earliest, stop)
        if match is not None and match.end() < stop:
            return match.end()
    # A word longer than the overlap: it is cut there, unless the last passage ended between two words.
    return stop if stop == earliest or text[stop - 1].isspace() else earliest
