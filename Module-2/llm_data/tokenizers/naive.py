"""Byte-level BPE in three short functions: what a reader can hold in the head, and what `bpe` is tested against.

`ByteLevelBPE` gives the same tokens, merges and ids. It counts pairs once, keeps the ids of words that it has met, and
looks at what it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from llm_data.tokenizers.bpe import bytes_to_unicode, to_characters
from llm_data.tokenizers.merging import Pair, learn_merges_naive, merge_by_rank
from llm_data.tokenizers.pretokenize import gpt2_words


def train_naive(texts: Iterable[str], vocab_size: int) -> tuple[list[str], list[Pair]]:
    """Learn a vocabulary: the 256 bytes, then merges.

    Args:
        texts: documents.
        vocab_size: number of tokens in all; fewer when no pair is left.

    Returns:
        The token of each id, and the merges in the order learned, as pairs of ids. Merge r makes the token 256 + r,
        unless two pairs spell the same.
    """
    tokens = list(bytes_to_unicode().values())
    ids = {token: i for i, token in enumerate(tokens)}
    words = Counter(word for text in texts for word in gpt2_words(text))
    symbols = [[ids[char] for char in to_characters(word)] for word in words]
    merges = learn_merges_naive(symbols, list(words.values()), tokens, vocab_size)
    return tokens, merges


def encode_naive(text: str, tokens: Sequence[str], merges: Sequence[Pair]) -> list[int]:
    """The ids of a text, each word merged anew."""
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {(a, b): (rank, ids[tokens[a] + tokens[b]]) for rank, (a, b) in enumerate(merges)}
    found = []
    for word in gpt2_words(text):
        found += merge_by_rank([ids[char] for char in to_characters(word)], ranks)
    return found


def decode_naive(ids: Iterable[int], tokens: Sequence[str]) -> str:
    """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    characters = "".join([tokens[i] for i in ids])
    return bytes([byte_of[char] for char in characters]).decode("utf-8", errors="replace")
