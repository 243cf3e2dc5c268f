"""What the course trains with: the library's tokenisers, their special tokens, and the hash that names them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from llm_data.measures import bits_per_byte
from llm_data.tokenizers.bpe import train_bpe
from llm_data.tokenizers.fast import (
    PAD,
    character_tokenizer,
    encode_documents,
    to_fast,
    tokenizer_hash,
    train_fast_tokenizer,
)
from llm_data.tokenizers.tokenizer_json import END_OF_TEXT, from_json
from tokenizer_texts import TEXT, course_data, python_files
from transformers import AutoTokenizer, PreTrainedTokenizerFast

FAST = train_fast_tokenizer(["def f(x):\n    return x\n", "print('hello world')\n"] * 5, 300)


def test_end_and_padding_are_two_tokens() -> None:
    assert (FAST.eos_token, FAST.eos_token_id, FAST.pad_token, FAST.pad_token_id) == (END_OF_TEXT, 0, PAD, 1)
    assert FAST.bos_token is None and FAST.unk_token is None
    assert len(FAST) <= 300
    assert len(train_fast_tokenizer(python_files()[:3], 500)) == 500


def test_it_is_what_ours_learns() -> None:
    texts = python_files()[:10]
    fast = train_fast_tokenizer(iter(texts), 900, min_frequency=2)
    ours = train_bpe(texts, 900, (END_OF_TEXT, PAD), min_frequency=2)
    assert from_json(fast.backend_tokenizer.to_str()) == ours
    again = to_fast(ours)
    assert encode_documents(again, texts) == encode_documents(fast, texts) == [ours.encode(text) for text in texts]
    assert (again.eos_token_id, again.pad_token_id) == (0, 1)
    assert to_fast(train_bpe(["a"], 256)).eos_token is None


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_any_document_comes_back(text: str) -> None:
    (ids,) = encode_documents(FAST, [text])
    assert not {0, 1} & set(ids)  # nothing appended, and nothing forged
    assert FAST.decode(ids) == text


def test_documents_cannot_forge_special_tokens(capfd: pytest.CaptureFixture[str]) -> None:
    text = f"one{END_OF_TEXT}two{PAD}"
    assert 0 in FAST(text).input_ids  # the trap
    assert not {0, 1} & set(encode_documents(FAST, [text])[0])
    assert FAST.backend_tokenizer.encode_special_tokens is False  # the tokeniser is left as it was
    assert 0 in FAST(text).input_ids
    long = encode_documents(FAST, ["a b" * 100_000])[0]
    assert len(long) == len(FAST.backend_tokenizer.encode("a b" * 100_000).ids)
    assert capfd.readouterr().err == ""  # no word of a sequence that is too long


def test_what_was_asked_for_before_cuts_nothing() -> None:
    tokenizer = train_fast_tokenizer(["ab"], 260)
    tokenizer(["a", "bbbbb"], padding=True, truncation=True, max_length=3)
    assert [len(ids) for ids in encode_documents(tokenizer, ["a", "b" * 9])] == [1, 9]
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=6, pad_id=1)
    assert [len(ids) for ids in encode_documents(tokenizer, ["a", "b" * 9])] == [1, 9]
    assert len(tokenizer.backend_tokenizer.encode("b" * 9).ids) == 6  # 4 of them left, 2 padded
    assert tokenizer.backend_tokenizer.encode("b" * 9).attention_mask == [1, 1, 1, 1, 0, 0]


def test_characters() -> None:
    tokenizer = character_tokenizer(["hello", "wor\nld "])
    assert tokenizer.convert_ids_to_tokens(list(range(9))) == sorted(set("hellowor\nld "))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (9, 10, 11)
    ids = encode_documents(tokenizer, [" hell\n  ow"])[0]
    assert len(ids) == 10 and tokenizer.decode(ids) == " hell\n  ow"
    with pytest.raises(ValueError, match="document 1: character 2, 'z', is not in the vocabulary"):
        encode_documents(tokenizer, ["hello", "hezlo"])
    with pytest.raises(ValueError, match="no character"):
        character_tokenizer([""])
    bare = character_tokenizer(["ab"], special_tokens=False)
    assert (len(bare), bare.eos_token, bare.pad_token) == (2, None, None)


def test_memory_of_characters_does_not_grow_with_the_documents() -> None:
    tracemalloc.start()
    tokenizer = character_tokenizer(f"document {number}" for number in range(5000))  # 3 MB, were a set of each kept
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tokenizer) == len(set("document 0123456789")) + 2 and peak < 2**20


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_any_characters_come_back(text: str) -> None:
    tokenizer = character_tokenizer([text, "a"])
    (ids,) = encode_documents(tokenizer, [text])
    assert len(ids) == len(text) and tokenizer.decode(ids) == text


def test_the_65_symbols_of_tiny_shakespeare() -> None:
    text = course_data("tinyshakespeare/input.txt").read_text(encoding="utf-8")
    tokenizer = character_tokenizer([text], special_tokens=False)
    ids = encode_documents(tokenizer, [text])[0]
    assert len(tokenizer) == 65 and len(ids) == 1_115_394
    numbers = {char: i for i, char in enumerate(sorted(set(text)))}
    assert ids == [numbers[char] for char in text]
    assert tokenizer.decode(ids) == text


def test_refusals() -> None:
    with pytest.raises(ValueError, match="vocab_size=257 is below 258"):
        train_fast_tokenizer(["a"], 257)
    with pytest.raises(ValueError, match="vocab_size=1000000000000 is above 4,194,304; lower it"):
        train_fast_tokenizer(["a"], 10**12)
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800"):
        character_tokenizer(["a\ud800"])
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        train_fast_tokenizer("a text", 300)
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        character_tokenizer("a text")
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        encode_documents(FAST, "a text")
    with pytest.raises(ValueError, match=r"document 1: character 1 is the lone surrogate U\+D800"):
        encode_documents(FAST, ["a", "b\ud800"])
    assert encode_documents(FAST, []) == []


# ---------------------------------------------------------------------------------------------- the hash


@pytest.mark.parametrize("tokenizer", [FAST, character_tokenizer(["abc \n"]), to_fast(train_bpe(["abab"], 258))])
def test_the_hash_survives_the_disk_and_use(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    before = tokenizer_hash(tokenizer)
    assert len(before) == 64
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert tokenizer_hash(loaded) == before
    tokenizer.backend_tokenizer.enable_truncation(2)
    encode_documents(tokenizer, ["abc"])
    assert tokenizer_hash(tokenizer) == before
    tokenizer.backend_tokenizer.no_truncation()


def test_the_hash_is_the_same_in_another_process() -> None:
    code = (
        "from llm_data.tokenizers.fast import *\n"
        "texts = ['def f(x):\\n    return x\\n', \"print('hello world')\\n\"] * 5\n"
        "print(tokenizer_hash(train_fast_tokenizer(texts, 300)))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tokenizer_hash(FAST)


def test_the_hash_tells_tokenisers_apart() -> None:
    texts = ["abab abc"]
    different = [
        train_fast_tokenizer(texts, 260),
        train_fast_tokenizer(texts, 261),
        train_fast_tokenizer(["cccc"], 260),
        character_tokenizer(texts),
        character_tokenizer(texts, special_tokens=False),
    ]
    no_end = train_fast_tokenizer(texts, 260)
    no_end.eos_token = PAD
    hashes = {tokenizer_hash(tokenizer) for tokenizer in [*different, no_end]}
    assert len(hashes) == 6


# ---------------------------------------------------------------------------------------------- bits per byte


def test_bits_per_byte_do_not_depend_on_the_cuts() -> None:
    assert bits_per_byte(math.log(256), 10, 10) == pytest.approx(8)
    assert bits_per_byte(math.log(256**3), 10, 30) == pytest.approx(8)
    assert bits_per_byte(math.log(2), 6, 3) == pytest.approx(2)
    with pytest.raises(ValueError, match="num_bytes=0"):
        bits_per_byte(1.0, 1, 0)
