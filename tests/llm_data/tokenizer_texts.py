"""What the tests of the tokenisers share: texts, and the `tokenizers` library as the reference."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import hypothesis.strategies as st
import pytest
from lightning_basics.data import source_files
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

END = "<|endoftext|>"
# Every code point but the surrogates, which no text in UTF-8 holds; and texts in which borders of words abound.
ANY = st.text(st.characters(exclude_categories=["Cs"]))
PIECES = [
    "a", "B", "ab", "é", "e\u0301", "ñ", "ß", "1", "२", "½", "Ⅷ", "'", "'s", "'S", "'ll", "’", ".", "!?", "_", "-",
    " ", "  ", "\t", "\n", "\r\n", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u2029",
    "\u202f", "\u3000", "\u200b", "\u200d", "\ufeff", "\x00", "\x7f", "中", "文字", "한", "ا", "ء", "👩\u200d👧",
    "🇩🇪", "\ue000", "\u0378", "\U000e0001", "\U0010ffff", "\ufffd", "Ġ", "Ċ", END, "<|", "|>", "[UNK]", "##",
    "\u0558", "\U0003d000", "\U00016ff4", "\u166d", "\u2e43",
]  # fmt: skip
BORDERS = st.lists(st.sampled_from(PIECES)).map("".join)
TEXT = ANY | BORDERS


@cache
def python_files() -> list[str]:
    """Some 0.8 MB of the standard library, whole files."""
    texts: list[str] = []
    for path in source_files():
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        if sum(map(len, texts)) > 800_000:
            break
    return texts


def course_data(name: str) -> Path:
    """A file of real text, or a skipped test."""
    root = os.environ.get("COURSE_DATA")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"needs {name} in the folder that COURSE_DATA names")
    return Path(root) / name


def library_bpe(
    texts: Sequence[str] | Iterator[str], vocab_size: int, special: Sequence[str] = (), min_frequency: int = 0
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def library_wordpiece(
    texts: Sequence[str],
    vocab_size: int,
    special: Sequence[str] = ("[UNK]",),
    min_frequency: int = 0,
    cjk: bool = False,
) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if cjk:
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
        )
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def library_ids(tokenizer: Tokenizer, text: str, allowed_special: bool = False) -> list[int]:
    tokenizer.encode_special_tokens = not allowed_special
    return tokenizer.encode(text, add_special_tokens=False).ids
