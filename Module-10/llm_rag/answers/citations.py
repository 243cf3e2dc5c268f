"""Whether an answer's citations hold: a plain rule, which can be read and can be wrong.

A sentence that cites [n] is supported by passage n when every number in it stands there, written in the same way, and
more than half of its other words of four letters and more do. A true sentence in other words fails the rule; a false
one that only turns the passage's words around passes it. It finds what is made up, and proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llm_rag.search.bm25 import words_of

CITATION = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")
SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)|\n+")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
COUNTS = frozenset({
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "hundred", "thousand",
    "million",
})  # fmt: skip
LEAD_IN = {"according", "passage", "passages"}  # words about the citing, not of what is said
LEAST_LETTERS = 4
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Citation:
    """One citation of an answer.

    Attributes:
        number: as cited.
        sentence: that cites, without its citations.
        exists: there is a passage of that number.
        supported: and it supports the sentence, by the rule above.
    """

    number: int
    sentence: str
    exists: bool
    supported: bool


def sentences_of(text: str) -> list[tuple[str, list[int]]]:
    """The sentences of an answer with the numbers that each cites; citations right behind a sentence belong to it."""
    found: list[tuple[str, list[int]]] = []
    for part in SENTENCE_END.split(text):
        numbers = [int(each) for match in CITATION.findall(part) for each in match.split(",")]
        plain = " ".join(CITATION.sub(" ", part).split())
        leading = CITATION.match(part.lstrip())
        if found and leading and (numbers and not words_of(plain)):
            found[-1][1].extend(numbers)  # "It is so. [1]"
        elif words_of(plain) or numbers:
            found.append((plain, numbers))
    return found


def supports(passage: str, sentence: str) -> bool:
    """Whether a passage supports a sentence, by the rule of this module. A sentence without a word has nothing to
    support."""
    numbers = set(NUMBER.findall(sentence))
    if not numbers <= set(NUMBER.findall(passage)):
        return False
    said, there = set(words_of(sentence)), set(words_of(passage))
    if not said & COUNTS <= there:
        return False
    words = {word for word in said - COUNTS - LEAD_IN if len(word) >= LEAST_LETTERS and not word.isdigit()}
    return len(words & there) > LEAST_SHARE * len(words) if words else bool(numbers)


def check_citations(text: str, passages: Sequence[str]) -> list[Citation]:
    """Every citation of an answer, and whether it holds.

    Args:
        text: of the answer.
        passages: `[n]` means `passages[n - 1]`.
    """
    found = []
    for sentence, numbers in sentences_of(text):
        for number in dict.fromkeys(numbers):
            exists = 1 <= number <= len(passages)
            found.append(Citation(number, sentence, exists, exists and supports(passages[number - 1], sentence)))
    return found


def is_supported(text: str, passages: Sequence[str]) -> bool:
    """Whether each sentence of an answer cites a passage, and every citation holds."""
    checked = check_citations(text, passages)
    said = sentences_of(text)
    return bool(said) and all(numbers for _, numbers in said) and all(each.supported for each in checked)
