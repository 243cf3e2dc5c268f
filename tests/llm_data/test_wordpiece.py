"""WordPiece against the `tokenizers` library: vocabulary, ids, texts, files."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from llm_data.tokenizers.pretokenize import bert_words
from llm_data.tokenizers.tokenizer_json import from_json, load, save, to_json
from llm_data.tokenizers.wordpiece import WordPiece, longest_match, pair_scores, train_wordpiece
from tokenizer_texts import TEXT, course_data, library_ids, library_wordpiece, python_files
from tokenizers import Tokenizer

UNK = "[UNK]"


def continuing_characters(library: Tokenizer, texts: list[str]) -> list[str]:
    """The characters that continue a word, in the order in which the library numbered them in this process."""
    later = {char for text in texts for word in bert_words(text) for char in word[1:]}
    ids = library.get_vocab()
    return sorted(later, key=lambda char: ids["##" + char])


def assert_learned_alike(texts: list[str], vocab_size: int, special: tuple[str, ...], frequency: int) -> None:
    library = library_wordpiece(texts, vocab_size, special, frequency)
    order = continuing_characters(library, texts)
    ours = train_wordpiece(texts, vocab_size, special, frequency, continuing_order=order)
    assert ours == from_json(library.to_str())
    assert list(ours.vocab) == sorted(ours.vocab, key=lambda token: ours.vocab[token])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("aab "), max_size=40) | st.text(st.sampled_from("abc .#"), max_size=60)),
    st.integers(20, 80),
    st.integers(0, 4),
    st.sampled_from([(UNK,), (UNK, "[PAD]", "ab"), (UNK, "##b")]),
)
def test_the_vocabulary_is_the_librarys(
    texts: list[str], vocab_size: int, frequency: int, special: tuple[str, ...]
) -> None:
    assert_learned_alike(texts, vocab_size, special, frequency)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, max_size=6))
def test_the_vocabulary_of_any_text_is_the_librarys(texts: list[str]) -> None:
    assert_learned_alike(texts, 2000, (UNK,), 0)


def test_the_vocabulary_of_source_code_is_the_librarys() -> None:
    assert_learned_alike(python_files()[:40], 3000, (UNK, "[PAD]"), 2)


def test_the_vocabulary_of_wikitext_is_the_librarys() -> None:
    assert_learned_alike([course_data("wikitext-2/valid.txt").read_text(encoding="utf-8")[:400_000]], 4000, (UNK,), 0)


def test_without_an_order_ours_is_the_same_in_every_run() -> None:
    texts = python_files()[:5]
    ours = train_wordpiece(texts, 800)
    assert ours == train_wordpiece(list(reversed(texts)), 800)
    single = [token for token in ours.vocab if len(token) == 3 and token.startswith("##")]
    assert single == sorted(single)
    with pytest.raises(ValueError, match="characters that continue a word, no others"):
        train_wordpiece(texts, 800, continuing_order="abc")


@cache
def pair(cjk: bool = False) -> tuple[Tokenizer, WordPiece]:
    library = library_wordpiece(python_files()[:60], 4000, (UNK, "[PAD]"), cjk=cjk)
    ours = from_json(library.to_str())
    assert isinstance(ours, WordPiece)
    return library, ours


def test_ids_of_source_code_are_the_librarys() -> None:
    library, ours = pair()
    for text in python_files()[::4]:
        ids = ours.encode(text)
        assert ids == library_ids(library, text)
        assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)


@settings(max_examples=400, deadline=None)
@given(TEXT | st.text(st.sampled_from("aeinst_.19 "), max_size=200), st.booleans())
def test_ids_of_anything_are_the_librarys(text: str, cjk: bool) -> None:
    library, ours = pair(cjk)
    ids = ours.encode(text)
    assert ids == library_ids(library, text)
    assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3999)))
def test_any_ids_decode_as_the_library_does(ids: list[int]) -> None:
    library, ours = pair()
    assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)


def test_longest_match_by_hand() -> None:
    vocab = {token: i for i, token in enumerate(["un", "una", "##aff", "##able", "##a", "##ffable", "##b"])}
    assert longest_match("unaffable", vocab) == ["una", "##ffable"]
    assert longest_match("unb", vocab) == ["un", "##b"]
    assert longest_match("unc", vocab) is None  # one letter that does not fit, and the whole word is lost
    assert longest_match("aff", vocab) is None  # "##aff" does not begin a word
    assert longest_match("", vocab) == []


def test_scores_by_hand() -> None:
    # ab ab ac: a 3, b 2, c 1.
    assert pair_scores([[0, 1], [0, 2]], [2, 1]) == {(0, 1): 2 / (3 * 2), (0, 2): 1 / (3 * 1)}
    assert pair_scores([[0, 0, 0]], [5]) == {(0, 0): 10 / 15**2}
    assert pair_scores([], []) == {}


def test_long_words_and_unknown_ones() -> None:
    ours = train_wordpiece(["aaa " * 50], 10)
    assert ours.tokens(ours.encode("a" * 100)) != [UNK]
    assert ours.tokens(ours.encode("a" * 101)) == [UNK]
    assert ours.tokens(ours.encode("aaa azz [UNK]")) == ["aaa", UNK, UNK, UNK, UNK]  # brackets are unknown here


def test_chinese_characters_apart() -> None:
    together = train_wordpiece(["中文 中文"], 20)
    apart = train_wordpiece(["中文 中文"], 20, separate_chinese=True)
    assert [len(tokenizer.encode("中文")) for tokenizer in (together, apart)] == [1, 2]
    library = Tokenizer.from_str(to_json(apart))
    assert library_ids(library, "a中文b") == apart.encode("a中文b")
    words = Counter(word for word in bert_words("中文 中文"))
    assert words == {"中文": 2}


def test_files_both_ways(tmp_path: Path) -> None:
    for cjk in (False, True):
        library, ours = pair(cjk)
        save(ours, tmp_path / "tokenizer.json")
        assert load(tmp_path / "tokenizer.json") == ours
        again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert again.get_vocab() == library.get_vocab()
        assert library_ids(again, "def f(中文): pass") == library_ids(library, "def f(中文): pass")
    whole = json.loads(pair()[0].to_str())
    for part, value in (
        ("normalizer", {"type": "BertNormalizer", "lowercase": True}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}),
        ("post_processor", {"type": "BertProcessing"}),
    ):
        with pytest.raises(ValueError, match=f"{part} = "):
            from_json(json.dumps(whole | {part: value}))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="vocab_size=3 is below 4"):
        train_wordpiece(["abb"], 3)
    with pytest.raises(ValueError, match="special_tokens is empty"):
        train_wordpiece(["abb"], 30, ())
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        train_wordpiece("abb", 30)
    with pytest.raises(ValueError, match=r"'\[UNK\]' is not in the vocabulary"):
        WordPiece({"a": 0})
    with pytest.raises(ValueError, match="an id used twice"):
        WordPiece({UNK: 0, "a": 0})
    ours = train_wordpiece(["abb"], 30)
    with pytest.raises(ValueError, match="lone surrogate"):
        ours.encode("a\udc00")
    with pytest.raises(ValueError, match="id 77 is no token's"):
        ours.decode([77])
