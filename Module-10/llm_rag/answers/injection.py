"""What a document may not do to an answer, and what an answer may not do to its reader.

The prompt's bounds are in `prompt.py`. Here is the way out: an answer brings no link, picture or address to its reader
that the question did not name. A picture alone would carry words of the passages to whoever wrote the document, the
moment it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

REMOVED = "(link removed)"
# A whole construct first: of a link to somewhere its words would remain, which is harmless, and its address.
LINKS = re.compile(
    r"""!\[[^\]\n]*\](?:\([^)\n]*\)?|\[[^\]\n]*\])   # a picture of Markdown
      | \[[^\]\n]*\]\([^)\n]*\)?                        # a link
      | ^\s*\[[^\]\n]+\]:\s*\S+                         # where a link of a reference leads
      | <\s*/?\s*(?:a|img|script|iframe|form|link|meta|object|embed|svg|video|audio|source|base|style)\b[^>]*>?
      | <?\b(?:https?:|(?:ftp|file)://|mailto:|javascript:|vbscript:|data:[\w.+-]*[/,;])[^\s<>()\[\]]+>?
      | (?<![\w@.])//[\w.-]+\.[a-z]{2,}[^\s<>()\[\]]*   # an address without its protocol
      | \bwww\.[^\s<>()\[\]]+""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
CITED = re.compile(r"\[\d{1,4}\]")
ORDERS = re.compile(
    r"""\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:above|previous|prior|earlier|instructions?|rules?|everything)\b
      | \byou\s+(?:are\s+now|must\s+now|must\s+always|will\s+now)\b
      | \b(?:system|developer)\s+(?:prompt|message)\b
      | \b(?:answer|reply|respond|say|print|output)\s+(?:only|with\s+only|exactly)\b
      | \bdo\s+not\s+(?:tell|mention|reveal|answer|follow)\b""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def without_links(text: str, question: str = "") -> tuple[str, tuple[str, ...]]:
    """An answer without links, pictures and addresses that do not stand in the question, and what was removed.

    It goes on until none is left: what remains when one is taken out may be another.

    Args:
        text: of the answer.
        question: what stands in it to the letter may stay.
    """
    removed: list[str] = []

    def one(match: re.Match[str]) -> str:
        if match[0].strip() in question:
            return match[0]
        removed.append(match[0])
        cited = CITED.match(match[0])  # a citation that was made a link stays a citation
        return f"{cited[0]} {REMOVED}" if cited else REMOVED

    while True:
        cleaned = LINKS.sub(one, text)
        if cleaned == text:
            return text, tuple(removed)
        text = cleaned


def like_orders(texts: Sequence[str]) -> list[tuple[int, str]]:
    """Sentences that sound like orders to a model, with the place of their text.

    Advice for a reader, and no protection: other words or another language give orders just as well, and a manual's
    "answer only yes or no" is none. Nothing is kept out because of it.
    """
    found = []
    for place, text in enumerate(texts):
        for match in ORDERS.finditer(text):
            start = max(text.rfind(mark, 0, match.start()) for mark in ".!?\n") + 1
            ends = [end for mark in ".!?\n" if (end := text.find(mark, match.end())) >= 0]
            found.append((place, text[start : min(ends, default=len(text)) + 1].strip()))
    return found
