"""WordPiece: the tokeniser of BERT, trained and applied as the `tokenizers` library does it.

Encoding is greedy: the longest token of the vocabulary that begins the word, then the longest that continues it
(marked by `##`), and so on. Training is *not* what the papers describe. Schuster and Nakajima 2012, and Wu et al. 2016,
section 4 (arXiv:1609.08144), choose the pair that raises the likelihood of the training text most; the code for it was
not published with BERT. `WordPieceTrainer` of the library runs the merges of BPE, by count, on symbols marked with
`##`, and keeps the vocabulary and not the merges. So does this file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llm_data.tokenizers.merging import Pair, count_pairs, learn_merges
from llm_data.tokenizers.pretokenize import bert_words, refuse_surrogates, separate_cjk

PREFIX = "##"


def pair_scores(words: Sequence[Sequence[int]], counts: Sequence[int]) -> dict[Pair, float]:
    """The score by which WordPiece is usually told to choose a pair: its count over the counts of its two symbols.

    A pair of score s occurs s N times as often as two symbols drawn apart would, of N symbols. `train_wordpiece`, like
    the library, does *not* use it.

    Args:
        words: each different word once, as the ids of its symbols.
        counts: how often each word occurs.
    """
    singles: Counter[int] = Counter()
    for word, count in zip(words, counts, strict=True):
        for symbol in word:
            singles[symbol] += count
    return {(a, b): n / (singles[a] * singles[b]) for (a, b), n in count_pairs(words, counts).items()}


def longest_match(word: str, vocab: Mapping[str, int], prefix: str = "##") -> list[str] | None:
    """The tokens of a word, each the longest that fits; None where none fits. As `tokenization.py` of BERT does it."""
    tokens = []
    start = 0
    while start < len(word):
        for end in range(len(word), start, -1):
            token = word[start:end] if start == 0 else prefix + word[start:end]
            if token in vocab:
                break
        else:
            return None
        tokens.append(token)
        start = end
    return tokens


@dataclass(frozen=True)
class WordPiece:
    """A frozen WordPiece tokeniser.

    Attributes:
        vocab: the id of each token; tokens that continue a word begin with `##`.
        unk_token: what a word becomes that the vocabulary cannot spell.
        max_chars: a longer word becomes `unk_token`, in characters.
        separate_chinese: whether each Chinese character is a word (`BertNormalizer(handle_chinese_chars=True)`).
        special_tokens: the id of each token that stands for no text, `unk_token` among them.

    Raises:
        ValueError: when `unk_token` is not in the vocabulary, or an id is used twice.
    """

    vocab: Mapping[str, int]
    unk_token: str = "[UNK]"
    max_chars: int = 100
    separate_chinese: bool = False
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    _texts: dict[int, str] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.unk_token not in self.vocab:
            raise ValueError(f"unk_token {self.unk_token!r} is not in the vocabulary; train with it as a special token")
        for token, number in {**self.vocab, **self.special_tokens}.items():
            if not token or number < 0 or number in self._texts or self.vocab.get(token, number) != number:
                raise ValueError(f"token {token!r} with id {number}: empty, negative, or an id used twice")
            self._texts[number] = token

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return max(self._texts) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Special tokens spelled in it are ordinary text.

        Raises:
            ValueError: for a lone surrogate, with its place.
        """
        refuse_surrogates(text)
        ids = []
        for word in bert_words(separate_cjk(text) if self.separate_chinese else text):
            tokens = longest_match(word, self.vocab) if len(word) <= self.max_chars else None
            ids += [self.vocab[token] for token in (tokens or [self.unk_token])]
        return ids

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The token of each id.

        Raises:
            ValueError: for an id that no token has.
        """
        try:
            return [self._texts[number] for number in ids]
        except KeyError as error:
            raise ValueError(f"id {error} is no token's; ids here are 0 to {self.vocab_size - 1}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The words joined by single spaces, as `decoders.WordPiece(cleanup=False)` does; the text's own are lost."""
        tokens = self.tokens(ids)
        parts = [token.removeprefix(PREFIX) if token.startswith(PREFIX) else " " + token for token in tokens[1:]]
        return "".join(tokens[:1] + parts)


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = ("[UNK]",),
    min_frequency: int = 0,
    separate_chinese: bool = False,
    continuing_order: Iterable[str] | None = None,
) -> WordPiece:
    """Learn a WordPiece vocabulary: special tokens, characters, characters that continue a word, then merges.

    Equal to the library's `WordPieceTrainer` behind `BertPreTokenizer`, but for one thing. The library gives ids to the
    continuing characters in the order of a hash map, which is another one in each process; ties are broken by id, so it
    learns another vocabulary in each process too. Here they are sorted. With `continuing_order`, read from a vocabulary
    of the library's, the result is that vocabulary.

    Args:
        texts: documents.
        vocab_size: number of tokens in all. Training stops earlier when no pair is left.
        special_tokens: tokens that stand for no text; the first is the unknown word.
        min_frequency: a pair must occur this often to be joined.
        separate_chinese: whether each Chinese character is a word.
        continuing_order: the characters that continue a word, in the order of their ids.

    Raises:
        ValueError: for a size below characters and special tokens, no special token, or a lone surrogate.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be several documents; for one text pass [text]")
    if not special_tokens:
        raise ValueError("special_tokens is empty; its first names the token of unknown words, such as '[UNK]'")
    frequencies: Counter[str] = Counter()
    for text in texts:
        refuse_surrogates(text)
        frequencies.update(bert_words(separate_cjk(text) if separate_chinese else text))
    first = sorted({char for word in frequencies for char in word})
    later = {char for word in frequencies for char in word[1:]}
    order = sorted(later) if continuing_order is None else list(continuing_order)
    if set(order) != later:
        raise ValueError(f"continuing_order must hold the {len(later)} characters that continue a word, no others")
    tokens = list(dict.fromkeys([*special_tokens, *first, *(PREFIX + char for char in order)]))
    if vocab_size < len(tokens):
        raise ValueError(f"vocab_size={vocab_size} is below {len(tokens)}, the characters and special tokens; raise it")
    ids = {token: number for number, token in enumerate(tokens)}
    words = [[ids[word[0]], *(ids[PREFIX + char] for char in word[1:])] for word in frequencies]
    learn_merges(words, list(frequencies.values()), tokens, vocab_size, min_frequency, PREFIX)
    vocab = {token: number for number, token in enumerate(tokens)}
    special = {token: vocab[token] for token in special_tokens}
    return WordPiece(vocab, special_tokens[0], separate_chinese=separate_chinese, special_tokens=special)
