"""Whether a held-out text was trained on: its n-grams, itself, or its prompt, in the training texts.

Brown et al. 2020, appendix C (arXiv:2005.14165), compares n-grams of words in lower case. Here a word is a run of
letters, digits and underscores; what stands between words does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

WORD = re.compile(r"\w+")


def ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    """Each run of n words of a text, in lower case.

    Raises:
        ValueError: for n below 1.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    words = WORD.findall(text.lower())
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def ngram_overlap(held_out: Sequence[str], training: Iterable[str], n: int = 8) -> list[float | None]:
    """Share of each held-out text's n-grams that occur in some training text, from 0 to 1.

    A text of fewer than n words has none, and nothing is said of it: None. Take a smaller n for short texts.

    Args:
        held_out: texts to score on.
        training: texts that were trained on; read once.
        n: words of an n-gram.

    Raises:
        ValueError: for n below 1.
    """
    asked = [list(ngrams(text, n)) for text in held_out]
    wanted = {gram for grams in asked for gram in grams}  # the training texts may be far more than memory holds
    found = {gram for text in training for gram in ngrams(text, n) if gram in wanted}
    return [sum(gram in found for gram in grams) / len(grams) if grams else None for grams in asked]


def duplicates(held_out: Sequence[str], training: Iterable[str]) -> list[int]:
    """Places of the held-out texts that are a training text, white space aside."""
    texts = {_plain(text) for text in training}
    return [place for place, text in enumerate(held_out) if _plain(text) in texts]


def prompts_inside(prompts: Sequence[str], training: Iterable[str]) -> list[int]:
    """Places of the held-out prompts that stand, whole, inside a training text, white space aside.

    Raises:
        ValueError: for a prompt without a letter, which would stand in every text.
    """
    wanted = [f" {_plain(prompt)} " for prompt in prompts]
    for place, prompt in enumerate(wanted):
        if not prompt.strip():
            raise ValueError(f"prompt {place} is empty, and would be found in every text; leave it out")
    found = set[int]()
    for text in training:
        plain = f" {_plain(text)} "
        found |= {place for place, prompt in enumerate(wanted) if prompt in plain}
    return sorted(found)


def _plain(text: str) -> str:
    return " ".join(text.split())
