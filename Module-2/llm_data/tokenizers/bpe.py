"""Byte-level byte-pair encoding: the tokeniser of GPT-2, trained and applied.

Sennrich et al. 2016 (arXiv:1508.07909) joined characters; Radford et al. 2019, section 2.2, join bytes, so that 256
symbols cover every text there is. Proved equal to the `tokenizers` library: merges learned, ids, texts decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import regex  # type: ignore[import-untyped]

from llm_data.tokenizers.merging import Pair, learn_merges, learn_merges_naive, merge_by_rank, merge_by_rank_heap
from llm_data.tokenizers.pretokenize import gpt2_words, refuse_surrogates

LONG_WORD = 64  # bytes; from here on the heap is faster than looking at all pairs
CACHE_SIZE = 1 << 16  # different words whose ids are kept


def bytes_to_unicode() -> dict[int, str]:
    """A printable character for each byte, in the order of the ids that GPT-2 gives to bytes.

    Printable bytes stand for themselves; the 68 others (spaces, control characters, 0xAD) get the characters from
    U+0100 on: a space becomes Ġ, a newline Ċ. The table of `encoder.py`, openai/gpt-2.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_TO_CHAR = bytes_to_unicode()
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def to_characters(text: str) -> str:
    """The bytes of a text's UTF-8 form, each as its printable character."""
    return "".join([BYTE_TO_CHAR[byte] for byte in text.encode("utf-8")])


@dataclass(frozen=True)
class ByteLevelBPE:
    """A frozen byte-level BPE tokeniser.

    Attributes:
        vocab: the id of each token; a token is written with the characters of `bytes_to_unicode`.
        merges: pairs of tokens that are joined, the earliest first.
        special_tokens: the id of each token that stands for no text, such as `<|endoftext|>`.

    Raises:
        ValueError: when a byte, a merge's token or an id is missing or taken twice.
    """

    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    _ranks: dict[Pair, tuple[int, int]] = field(init=False, repr=False, compare=False, default_factory=dict)
    _texts: dict[int, str] = field(init=False, repr=False, compare=False, default_factory=dict)
    _bytes: dict[str, bytes] = field(init=False, repr=False, compare=False, default_factory=dict)
    _cache: dict[str, list[int]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        missing = [byte for byte, char in BYTE_TO_CHAR.items() if char not in self.vocab]
        if missing:
            raise ValueError(
                f"the vocabulary has no token for {len(missing)} of the 256 bytes, the first is {missing[0]:#04x}; "
                "train with initial_alphabet=ByteLevel.alphabet()"
            )
        for rank, (first, second) in enumerate(self.merges):
            unknown = [token for token in (first, second, first + second) if token not in self.vocab]
            if unknown:
                raise ValueError(f"merge {rank} ({first!r}, {second!r}): {unknown[0]!r} is not in the vocabulary")
            self._ranks[self.vocab[first], self.vocab[second]] = (rank, self.vocab[first + second])
        for token, number in {**self.vocab, **self.special_tokens}.items():
            if not token or number < 0 or number in self._texts or self.vocab.get(token, number) != number:
                raise ValueError(f"token {token!r} with id {number}: empty, negative, or an id used twice")
            self._texts[number] = token
            plain = all(char in CHAR_TO_BYTE for char in token)
            self._bytes[token] = bytes(CHAR_TO_BYTE[char] for char in token) if plain else token.encode("utf-8")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return max(self._texts) + 1

    def encode(self, text: str, allowed_special: bool = False) -> list[int]:
        """The ids of a text.

        Args:
            text: any text that has a UTF-8 form.
            allowed_special: whether the text of a special token becomes that token. Leave it off for text that others
                wrote: a document must not be able to forge an end of text by spelling it.

        Raises:
            ValueError: for a lone surrogate, with its place.
        """
        refuse_surrogates(text)
        if not (allowed_special and self.special_tokens):
            return self._encode_ordinary(text)
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        ids = []
        for part in regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text):
            ids += [self.special_tokens[part]] if part in self.special_tokens else self._encode_ordinary(part)
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        ids = []
        for word in gpt2_words(text):
            found = self._cache.get(word)
            if found is None:
                found = self._encode_word(word)
                if len(self._cache) < CACHE_SIZE and len(word) < LONG_WORD:
                    self._cache[word] = found
            ids += found
        return ids

    def _encode_word(self, word: str) -> list[int]:
        symbols = [self.vocab[char] for char in to_characters(word)]
        merge = merge_by_rank if len(symbols) < LONG_WORD else merge_by_rank_heap
        return merge(symbols, self._ranks)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The token of each id, as the vocabulary writes it.

        Raises:
            ValueError: for an id that no token has.
        """
        try:
            return [self._texts[number] for number in ids]
        except KeyError as error:
            raise ValueError(f"id {error} is no token's; ids here are 0 to {self.vocab_size - 1}") from None

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of the ids. Bytes that are no UTF-8, as when ids cut a character in half, become U+FFFD.

        Raises:
            ValueError: for an id that no token has.
        """
        skipped = self.special_tokens if skip_special_tokens else {}
        parts = [self._bytes[token] for token in self.tokens(ids) if token not in skipped]
        return b"".join(parts).decode("utf-8", errors="replace")


def train_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (), min_frequency: int = 0
) -> ByteLevelBPE:
    """Learn a byte-level BPE: special tokens first, then the 256 bytes, then merges.

    Equal to `tokenizers` with `BpeTrainer(vocab_size, min_frequency, special_tokens,
    initial_alphabet=ByteLevel.alphabet())` behind `ByteLevel(add_prefix_space=False)`.

    Args:
        texts: documents; no merge reaches across words of `gpt2_words`, let alone documents.
        vocab_size: number of tokens in all. Training stops earlier when no pair is left.
        special_tokens: tokens that stand for no text. Their spelling in a document is trained on as ordinary text.
        min_frequency: a pair must occur this often to be joined.

    Raises:
        ValueError: for a size below the bytes and special tokens, or a text with a lone surrogate.
    """
    return _train(texts, vocab_size, special_tokens, min_frequency, naive=False)


def train_bpe_naive(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (), min_frequency: int = 0
) -> ByteLevelBPE:
    """The same as `train_bpe`, all pairs recounted for each merge."""
    return _train(texts, vocab_size, special_tokens, min_frequency, naive=True)


def _train(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str], min_frequency: int, naive: bool
) -> ByteLevelBPE:
    if isinstance(texts, str):
        raise TypeError("texts must be several documents; for one text pass [text]")
    tokens = list(dict.fromkeys([*special_tokens, *BYTE_TO_CHAR.values()]))
    if vocab_size < len(tokens):
        raise ValueError(
            f"vocab_size={vocab_size} is below {len(tokens)}, the 256 bytes and the special tokens; raise it"
        )
    frequencies: Counter[str] = Counter()
    for text in texts:
        refuse_surrogates(text)
        frequencies.update(gpt2_words(text))
    ids = {token: number for number, token in enumerate(tokens)}
    words = [[ids[char] for char in to_characters(word)] for word in frequencies]
    learn = learn_merges_naive if naive else learn_merges
    pairs = learn(words, list(frequencies.values()), tokens, vocab_size, min_frequency)
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [(tokens[first], tokens[second]) for first, second in pairs]
    return ByteLevelBPE(vocab, merges, {token: vocab[token] for token in special_tokens})
