"""Byte-level BPE against the `tokenizers` library: where words end, the merges learned, ids, texts, files."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import hypothesis.strategies as st
import pytest
import regex
from hypothesis import example, given, settings
from llm_data.tokenizers import pretokenize
from llm_data.tokenizers.bpe import BYTE_TO_CHAR, ByteLevelBPE, bytes_to_unicode, train_bpe, train_bpe_naive
from llm_data.tokenizers.merging import merge_by_rank, merge_by_rank_heap, merge_pair
from llm_data.tokenizers.naive import decode_naive, encode_naive, train_naive
from llm_data.tokenizers.pretokenize import bert_words, gpt2_words, separate_cjk
from llm_data.tokenizers.tokenizer_json import from_json, load, load_gpt2, save, to_json
from tokenizer_texts import END, TEXT, course_data, library_bpe, library_ids, python_files
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

# ---------------------------------------------------------------------------------------------- words


@cache
def every_character() -> str:
    return "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)


@cache
def library_set(pattern: str) -> set[str]:
    pieces = pre_tokenizers.Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(every_character())
    return set("".join(piece for piece, _ in pieces))


@cache
def our_set(pattern: str) -> set[str]:
    return set(regex.findall(pattern, every_character(), flags=regex.V1))


@pytest.mark.parametrize(
    ("published", "ours", "newer"),
    [
        (r"\p{L}", pretokenize.LETTER, pretokenize.NEWER_LETTERS),
        (r"\p{N}", pretokenize.NUMBER, pretokenize.NEWER_NUMBERS),
    ],
)
def test_letters_and_numbers_are_the_librarys_at_every_character(published: str, ours: str, newer: str) -> None:
    library = library_set(published)
    assert our_set(ours) == library
    # What is taken away is exactly what the two engines see differently: nothing else is narrowed.
    assert our_set(pretokenize.character_set(newer)) == our_set(published) - library
    assert library - our_set(published) == set()
    assert library_set(r"\s") == our_set(r"\s")


def test_punctuation_is_the_librarys_at_every_character() -> None:
    cut = pre_tokenizers.BertPreTokenizer().pre_tokenize_str("a".join(every_character()))
    library = {piece for piece, _ in cut if len(piece) == 1 and piece != "a"}
    assert our_set(pretokenize.PUNCTUATION) == library
    seen = our_set(r"\p{P}") | our_set(pretokenize.ASCII_PUNCTUATION)
    assert our_set(pretokenize.character_set(pretokenize.NEWER_PUNCTUATION)) == seen - library
    assert our_set(pretokenize.character_set(pretokenize.FORMER_PUNCTUATION)) == library - seen


def test_chinese_characters_are_the_librarys_at_every_character() -> None:
    normalizer = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    assert separate_cjk(every_character()) == normalizer.normalize_str(every_character())


def library_words(text: str) -> list[str]:
    chars = {char: byte for byte, char in BYTE_TO_CHAR.items()}
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [bytes(chars[char] for char in piece).decode("utf-8") for piece, _ in pieces]


@settings(max_examples=400, deadline=None)
@given(TEXT)
@example("I'll we'VE\n\n  x  \r\n ''s 's12 ½a_b")
def test_words_are_the_librarys(text: str) -> None:
    words = gpt2_words(text)
    assert words == library_words(text)
    assert "".join(words) == text
    assert bert_words(text) == [piece for piece, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)]


def test_the_byte_table() -> None:
    table = bytes_to_unicode()
    assert sorted(table) == list(range(256)) and len(set(table.values())) == 256
    assert set(table.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert (table[ord("A")], table[ord(" ")], table[ord("\n")], table[0xAD]) == ("A", "Ġ", "Ċ", "\u0143")


# ---------------------------------------------------------------------------------------------- merges


def assert_learned_alike(texts: list[str], vocab_size: int, special: tuple[str, ...] = (), frequency: int = 0) -> None:
    library = from_json(library_bpe(texts, vocab_size, special, frequency).to_str())
    assert train_bpe(texts, vocab_size, special, frequency) == library


# Two or three letters and many words: ties and overlaps ("aaa", "abab") in nearly every round.
WORDS = st.lists(st.text(st.sampled_from("aab "), max_size=30) | st.text(st.sampled_from("abc  "), max_size=60))


@settings(max_examples=300, deadline=None)
@given(
    WORDS,
    st.integers(258, 330),
    st.integers(0, 4),
    st.sampled_from([(), (END,), (END, "<|pad|>"), ("ab",), ("aa", "aaa"), ("a",)]),
)
@example(["aaaa abab"], 270, 0, ())
@example(["aaa aaa aaaaa aaaaaaa"], 270, 0, ())
def test_merges_are_the_librarys_and_the_naive_ones(
    texts: list[str], vocab_size: int, frequency: int, special: tuple[str, ...]
) -> None:
    assert_learned_alike(texts, vocab_size, special, frequency)
    naive = train_bpe_naive(texts, vocab_size, special, frequency)
    assert naive == train_bpe(texts, vocab_size, special, frequency)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, max_size=6), st.integers(256, 300), TEXT)
@example(["aaa aaa aaaaa aaaaaaa"], 270, "aaaa aaaaaaaaaa")
def test_the_three_short_functions_are_the_fast_tokenizer(texts: list[str], vocab_size: int, text: str) -> None:
    ours = train_bpe(texts, vocab_size)
    tokens, merges = train_naive(texts, vocab_size)
    assert {token: number for number, token in enumerate(tokens)} == ours.vocab
    assert [(tokens[first], tokens[second]) for first, second in merges] == ours.merges
    ids = encode_naive(text, tokens, merges)
    assert ids == ours.encode(text)
    assert decode_naive(ids, tokens) == text
    assert decode_naive(ids[1:], tokens) == ours.decode(ids[1:])


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, max_size=8), st.integers(257, 400))
def test_merges_of_any_text_are_the_librarys(texts: list[str], vocab_size: int) -> None:
    assert_learned_alike(texts, vocab_size, (END,))


@pytest.mark.parametrize(("vocab_size", "frequency"), [(300, 0), (2000, 2), (30_000, 40)])
def test_merges_of_source_code_are_the_librarys(vocab_size: int, frequency: int) -> None:
    assert_learned_alike(python_files()[::2], vocab_size, (END, "<|pad|>"), frequency)


@pytest.mark.parametrize("name", ["tinyshakespeare/input.txt", "wikitext-2/valid.txt"])
def test_merges_of_real_texts_are_the_librarys(name: str) -> None:
    assert_learned_alike([course_data(name).read_text(encoding="utf-8")], 3000, (END,))


def test_a_special_tokens_spelling_is_trained_on_as_text() -> None:
    trained = train_bpe([END * 50], 300, (END,))
    assert trained.special_tokens == {END: 0}
    assert trained.encode(END) != [0]
    assert ("end", "of") in trained.merges or "endoftext" in trained.vocab


def test_training_refuses() -> None:
    with pytest.raises(ValueError, match="vocab_size=256 is below 257"):
        train_bpe(["a"], 256, (END,))
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        train_bpe("a text", 300)
    with pytest.raises(ValueError, match=r"character 1 is the lone surrogate U\+D800"):
        train_bpe(["a\ud800"], 300)


# ---------------------------------------------------------------------------------------------- ids


@cache
def pair() -> tuple[Tokenizer, ByteLevelBPE]:
    """8,192 tokens trained by the library on the standard library's source, and ours from its file."""
    library = library_bpe(python_files(), 8192, (END, "<|pad|>"))
    ours = from_json(library.to_str())
    assert isinstance(ours, ByteLevelBPE)
    return library, ours


@cache
def gpt2_pair() -> tuple[Tokenizer, ByteLevelBPE]:
    ours = load_gpt2(course_data("gpt2-bpe/encoder.json").parent)
    return Tokenizer.from_str(to_json(ours)), ours


def test_ids_of_source_code_are_the_librarys() -> None:
    library, ours = pair()
    for text in python_files():
        ids = ours.encode(text)
        assert ids == library_ids(library, text)
        assert ours.decode(ids) == text


def test_ids_of_gpt2_on_source_code_are_the_librarys() -> None:
    library, ours = gpt2_pair()
    for text in python_files()[::2]:
        assert ours.encode(text) == library_ids(library, text)


@pytest.mark.parametrize("name", ["tinyshakespeare/input.txt", "wikitext-2/valid.txt", "wikitext-2/test.txt"])
def test_ids_of_gpt2_on_real_texts_are_the_librarys(name: str) -> None:
    library, ours = gpt2_pair()
    text = course_data(name).read_text(encoding="utf-8")
    ids = ours.encode(text)
    assert ids == library_ids(library, text)
    assert ours.decode(ids) == text


def test_gpt2s_tables() -> None:
    ours = gpt2_pair()[1]
    assert (ours.vocab_size, len(ours.merges), ours.special_tokens) == (50257, 50000, {END: 50256})
    assert list(BYTE_TO_CHAR.values()) == ours.tokens(range(256))
    assert ours.encode("Hello world") == [15496, 995]


@settings(max_examples=400, deadline=None)
@given(TEXT, st.booleans())
def test_ids_and_texts_of_anything_are_the_librarys(text: str, allowed: bool) -> None:
    library, ours = pair()
    ids = ours.encode(text, allowed_special=allowed)
    assert ids == library_ids(library, text, allowed)
    assert ours.decode(ids) == text == library.decode(ids, skip_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_ids_of_gpt2_on_anything_are_the_librarys(text: str) -> None:
    library, ours = gpt2_pair()
    assert ours.encode(text) == library_ids(library, text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 8191) | st.integers(2, 257)), st.booleans())
def test_ids_that_cut_characters_decode_as_the_library_does(ids: list[int], skip: bool) -> None:
    library, ours = pair()
    assert ours.decode(ids, skip_special_tokens=skip) == library.decode(ids, skip_special_tokens=skip)


def test_an_emoji_cut_in_half() -> None:
    ids = train_bpe([], 256).encode("😀")
    assert len(ids) == 4
    bytes_only = Tokenizer.from_str(to_json(train_bpe([], 256)))
    for end in range(4):
        assert train_bpe([], 256).decode(ids[:end]) == bytes_only.decode(ids[:end])
    assert train_bpe([], 256).decode(ids[:3]) == "\ufffd"


def test_a_document_cannot_forge_an_end_of_text() -> None:
    ours = pair()[1]
    text = f"one{END}two"
    assert ours.encode(text).count(0) == 0
    assert ours.encode(text, allowed_special=True) == [*ours.encode("one"), 0, *ours.encode("two")]
    assert ours.decode(ours.encode(text, allowed_special=True), skip_special_tokens=True) == "onetwo"


def test_of_two_special_tokens_at_one_place_the_longer_wins() -> None:
    special = ("<a>", "<a><b>", "x y")
    library = library_bpe(["abc"], 300, special)
    ours = train_bpe(["abc"], 300, special)
    for text in ("<a><b>", "<a> <a><b><b>", "ax yb", "<a><a>", ""):
        ids = ours.encode(text, allowed_special=True)
        assert ids == library_ids(library, text, allowed_special=True)
        assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=150), st.randoms(use_true_random=False))
def test_the_heap_merges_as_the_scan_does(word: list[int], order: random.Random) -> None:
    pairs = [(a, b) for a in range(8) for b in range(8)]
    order.shuffle(pairs)
    # Any rule at all, also one that makes an early symbol from late ones; new symbols stay below 8.
    ranks = {pair: (rank, order.randrange(8)) for rank, pair in enumerate(pairs[:20])}
    assert merge_by_rank_heap(word, ranks) == merge_by_rank(word, ranks)


def test_merge_pair_goes_from_left_to_right() -> None:
    assert merge_pair([1, 1, 1], (1, 1), 2) == [2, 1]
    assert merge_pair([1, 1, 1, 1, 2], (1, 1), 2) == [2, 2, 2]
    assert merge_pair([], (1, 1), 2) == []


def test_long_words_take_no_quadratic_time() -> None:
    library, ours = pair()
    text = " " * 100_000 + "a" * 100_000
    assert ours.encode(text) == library_ids(library, text)


def test_the_cache_changes_nothing() -> None:
    fresh = from_json(pair()[0].to_str())
    assert isinstance(fresh, ByteLevelBPE)
    text = "def f(x): return x\n" * 3
    first = fresh.encode(text)
    assert fresh.encode(text) == first
    first.append(0)  # a caller's list is the caller's own
    single = fresh.encode("def")
    single.append(0)
    assert fresh.encode("def") == single[:-1]
    assert fresh == from_json(pair()[0].to_str())


@pytest.mark.parametrize("text", ["\ud800", "ab\udfff", "😀\ud83d"])
def test_a_lone_surrogate_is_refused_with_its_place(text: str) -> None:
    ours = pair()[1]
    with pytest.raises(ValueError, match=rf"character {len(text) - 1} is the lone surrogate U\+D"):
        ours.encode(text)


def test_what_cannot_be_a_vocabulary_is_refused() -> None:
    good = train_bpe(["abab"], 258, (END,))
    vocab = dict(good.vocab)
    with pytest.raises(ValueError, match="no token for 1 of the 256 bytes, the first is 0x41"):
        ByteLevelBPE({token: i for token, i in vocab.items() if token != "A"}, [])
    with pytest.raises(ValueError, match=r"merge 0 \('a', 'c'\): 'ac' is not in the vocabulary"):
        ByteLevelBPE(vocab, [("a", "c")])
    with pytest.raises(ValueError, match="'zz' with id 5"):
        ByteLevelBPE(vocab | {"zz": 5}, good.merges)
    with pytest.raises(ValueError, match="with id 7"):
        ByteLevelBPE(vocab, good.merges, {END: 7})
    with pytest.raises(ValueError, match="id 999 is no token's; ids here are 0 to 257"):
        good.decode([1, 999])


# ---------------------------------------------------------------------------------------------- files


def test_what_we_save_the_library_loads(tmp_path: Path) -> None:
    ours = train_bpe(python_files()[:20], 1000, (END,))
    save(ours, tmp_path / "tokenizer.json")
    assert load(tmp_path / "tokenizer.json") == ours
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.get_vocab() == {**ours.vocab}
    for text in [*python_files()[-5:], f"a{END} b é\n中 😀"]:
        for allowed in (False, True):
            ids = ours.encode(text, allowed_special=allowed)
            assert ids == library_ids(library, text, allowed)
            assert library.decode(ids, skip_special_tokens=False) == text


def test_what_the_library_saves_we_load(tmp_path: Path) -> None:
    library = pair()[0]
    library.save(str(tmp_path / "tokenizer.json"), pretty=True)
    assert load(tmp_path / "tokenizer.json") == pair()[1]
    added = library_bpe(python_files()[:5], 500)
    added.add_special_tokens([END])  # an id behind the model's own
    ours = from_json(added.to_str())
    assert ours.special_tokens == {END: 500} and ours.vocab_size == 501
    again = Tokenizer.from_str(to_json(ours))
    for allowed in (False, True):
        ids = library_ids(added, f"x{END}y", allowed)
        assert isinstance(ours, ByteLevelBPE)
        assert ours.encode(f"x{END}y", allowed) == ids == library_ids(again, f"x{END}y", allowed)
    old = json.loads(library.to_str())
    old["model"]["merges"] = [" ".join(merge) for merge in old["model"]["merges"]]
    assert from_json(json.dumps(old)) == pair()[1]


def test_openais_two_files(tmp_path: Path) -> None:
    ours = train_bpe(["### # a ## # ab ###"] * 9, 270, (END,))
    assert ("#", "#") in ours.merges  # a line that begins with the mark of the version line
    (tmp_path / "encoder.json").write_text(json.dumps(dict(ours.vocab)), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in ours.merges), ""]
    (tmp_path / "vocab.bpe").write_text("\n".join(lines), encoding="utf-8")
    assert load_gpt2(tmp_path) == ours
    (tmp_path / "vocab.bpe").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab\.bpe"):
        load_gpt2(tmp_path)


BEGINS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [0], "tokens": ["[CLS]"]}},
}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["normalizer"], {"type": "NFC"}, "normalizer"),
        (["truncation"], {"max_length": 8}, "truncation"),
        (["padding"], {"pad_id": 0}, "padding"),
        (["pre_tokenizer"], {"type": "Whitespace"}, '"Whitespace" is not supported; only "ByteLevel" is'),
        (["pre_tokenizer"], None, "pre_tokenizer = null"),
        (["pre_tokenizer", "add_prefix_space"], True, "add_prefix_space = true"),
        (["pre_tokenizer", "use_regex"], False, "use_regex = false"),
        (["post_processor"], BEGINS, "TemplateProcessing"),
        (["decoder"], {"type": "Fuse"}, "decoder"),
        (["model", "dropout"], 0.1, "dropout = 0.1"),
        (["model", "byte_fallback"], True, "byte_fallback = true"),
        (["model", "ignore_merges"], True, "ignore_merges = true"),
        (["model", "continuing_subword_prefix"], "##", "continuing_subword_prefix"),
        (["model", "end_of_word_suffix"], "</w>", "end_of_word_suffix"),
        (["model", "type"], "Unigram", "model 'Unigram' is not supported"),
        (["added_tokens", 0, "lstrip"], True, "lstrip of the added token"),
        (["added_tokens", 0, "special"], False, "special of the added token"),
        (["model"], {}, "no JSON object with a model"),
    ],
)
def test_what_we_do_not_do_is_refused_by_name(place: list[str | int], value: object, message: str) -> None:
    whole = json.loads(library_bpe(["abc"], 260, (END,)).to_str())
    part = whole
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps(whole))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"a\.json is no tokenizer\.json"):
        load(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "b.json")
