"""Ranking by words: Okapi BM25, by hand. Robertson and Zaragoza 2009, equation 3.15.

A word counts more in a document the more often it stands there, with an end to it (k1); less in a longer document (b);
and more the fewer documents have it (idf). Three kinds of idf are in use for a word that n of N documents have:

* "okapi": log((N - n + 0.5) / (n + 0.5)), and `epsilon` times the mean of all where that is below 0; as `rank_bm25`.
* "fts5": the same, and 1e-6 where it is not above 0; as SQLite's `bm25()`.
* "lucene": log(1 + (N - n + 0.5) / (n + 0.5)), which is never below 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("okapi", "fts5", "lucene")
WORD = re.compile(r"[^\W_]+")


class Hit(NamedTuple):
    """What a search found.

    Attributes:
        id: of the document, its place in what was indexed.
        score: the larger the better.
    """

    id: int
    score: float


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, where "_" is no letter: `read_text` is two words."""
    return WORD.findall(text.lower())


class BM25:
    """An inverted index of words: for each word, which documents have it and what it adds to their score.

    Args:
        documents: words of each, as of `words_of`.
        k1: how soon more of the same word adds nothing, 0 or more.
        b: how much a document's length counts, from 0 to 1.
        idf: "okapi", "fts5" or "lucene"; see above.
        epsilon: of "okapi".

    Raises:
        ValueError: for no documents, or values out of range.
    """

    def __init__(
        self, documents: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75, idf: str = "okapi",
        epsilon: float = 0.25,
    ) -> None:  # fmt: skip
        if not documents:
            raise ValueError("there are no documents to rank; give at least one")
        if isinstance(documents[0], str):
            raise ValueError("a document is a list of words; give words_of(text) for each")
        if not (0 <= k1 < math.inf and 0 <= b <= 1):
            raise ValueError(f"k1={k1} must be 0 or more, and b={b} from 0 to 1")
        if idf not in KINDS:
            raise ValueError(f"idf={idf!r} is none of {', '.join(KINDS)}")
        self.number = len(documents)
        lengths = np.array([len(words) for words in documents], dtype=float)
        # As long as the mean where all are empty: nothing is divided by 0.
        share = lengths / lengths.mean() if lengths.any() else np.ones_like(lengths)
        self._norm = k1 * (1 - b + b * share)
        counted: dict[str, tuple[list[int], list[int]]] = {}
        for place, words in enumerate(documents):
            for word, count in Counter(words).items():
                places, counts = counted.setdefault(word, ([], []))
                places.append(place)
                counts.append(count)
        self.idf = _idf({word: len(places) for word, (places, _) in counted.items()}, self.number, idf, epsilon)
        self.postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, (places, counts) in counted.items():
            where, times = np.array(places), np.array(counts, dtype=float)
            self.postings[word] = where, self.idf[word] * times * (k1 + 1) / (times + self._norm[where])

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """The score of every document, in their order; a word that is asked twice counts twice."""
        total = np.zeros(self.number)
        for word in query:
            if word in self.postings:
                places, weights = self.postings[word]
                total[places] += weights
        return total

    def search(self, query: Sequence[str], k: int) -> list[Hit]:
        """The best k that have a word of the query, best first; of equal ones the lower id first.

        Raises:
            ValueError: for k below 1.
        """
        if k < 1:
            raise ValueError(f"k={k} must be at least 1")
        found = [self.postings[word][0] for word in set(query) if word in self.postings]
        if not found:
            return []
        places = np.unique(np.concatenate(found))
        scores = self.scores(query)[places]
        order = np.argsort(-scores, kind="stable")[:k]
        return [Hit(int(places[place]), float(scores[place])) for place in order]


def _idf(number_with: dict[str, int], number: int, kind: str, epsilon: float) -> dict[str, float]:
    ratio = {word: (number - n + 0.5) / (n + 0.5) for word, n in number_with.items()}
    if kind == "lucene":
        return {word: math.log1p(value) for word, value in ratio.items()}
    plain = {word: math.log(value) for word, value in ratio.items()}
    if kind == "fts5":
        return {word: value if value > 0 else 1e-6 for word, value in plain.items()}
    floor = epsilon * sum(plain.values()) / max(1, len(plain))
    return {word: floor if value < 0 else value for word, value in plain.items()}
