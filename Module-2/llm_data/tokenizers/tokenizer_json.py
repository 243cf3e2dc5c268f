"""Tokenisers as files: Hugging Face's `tokenizer.json`, both ways, and OpenAI's two files of GPT-2.

What `save` writes, `tokenizers.Tokenizer.from_file` loads and encodes alike; what the library saves, `load` reads, as
long as it is a byte-level BPE cut by GPT-2's pattern, or a WordPiece cut by BERT's. Anything else would encode
otherwise than its file says, and is refused by name.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_data.errors import one_line
from llm_data.tokenizers.bpe import ByteLevelBPE
from llm_data.tokenizers.tokenizer_parts import SEPARATE_CHINESE, plain, read_whole, refuse_affixes, refuse_parts
from llm_data.tokenizers.wordpiece import PREFIX, WordPiece
from llm_data.whole_files import write_in_place

END_OF_TEXT = "<|endoftext|>"


def to_json(tokenizer: ByteLevelBPE | WordPiece) -> str:
    """The text of a `tokenizer.json`."""
    special = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    parts = _bpe_parts(tokenizer) if isinstance(tokenizer, ByteLevelBPE) else _wordpiece_parts(tokenizer)
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for token, number in special],
        "normalizer": None,
        "post_processor": None,
        **parts,
    }
    return json.dumps(whole, ensure_ascii=False, indent=1)


def save(tokenizer: ByteLevelBPE | WordPiece, path: Path | str) -> None:
    """Write a tokeniser in the format of `tokenizer.json`. A crash while writing costs no file that was there."""
    text = to_json(tokenizer)
    write_in_place(Path(path), lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def load(path: Path | str) -> ByteLevelBPE | WordPiece:
    """Read a tokeniser from a `tokenizer.json`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no such file, or asks for something that these tokenisers do not do, named.
    """
    return from_json(_text_of(Path(path)), str(path))


def from_json(text: str, name: str = "tokenizer.json") -> ByteLevelBPE | WordPiece:
    """Read a tokeniser from the text of a `tokenizer.json`; `name` stands in the errors. Errors as for `load`."""
    shape = (json.JSONDecodeError, RecursionError, LookupError, TypeError, AttributeError)  # other errors of a file's
    with suppress(*shape):
        refuse_affixes(name, json.loads(text)["model"])
    try:
        whole = read_whole(text)
    except ValueError as error:
        with suppress(*shape):
            refuse_parts(name, json.loads(text))
        raise ValueError(
            f"{name} is no tokenizer.json: no JSON object with a model and the parts that the tokenizers library knows "
            f"({error})"
        ) from None
    refuse_parts(name, whole)
    model, special = whole["model"], {added["content"]: added["id"] for added in whole["added_tokens"]}
    try:
        if model["type"] == "BPE":
            return ByteLevelBPE(model["vocab"], [_pair(merge) for merge in model["merges"]], special)
        chinese = plain(whole["normalizer"]) is not None
        return WordPiece(model["vocab"], model["unk_token"], model["max_input_chars_per_word"], chinese, special)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def load_gpt2(folder: Path | str) -> ByteLevelBPE:
    """GPT-2's tokeniser from OpenAI's `encoder.json` (ids) and `vocab.bpe` (merges).

    Raises:
        FileNotFoundError: when one of the two is missing.
        ValueError: when one of them is damaged, or the two do not belong together.
    """
    vocab_path, merges_path = Path(folder) / "encoder.json", Path(folder) / "vocab.bpe"
    try:
        vocab = json.loads(_text_of(vocab_path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{vocab_path}: no JSON object of tokens and ids ({one_line(error)})") from None
    if not isinstance(vocab, dict) or not all(type(number) is int for number in vocab.values()):
        raise ValueError(f"{vocab_path}: no JSON object of tokens and ids, which are whole numbers")
    merges = []
    for number, line in enumerate(_text_of(merges_path).split("\n"), start=1):
        if line and not line.startswith("#version"):
            if len(line.split(" ")) != 2:
                raise ValueError(
                    f"{merges_path}, line {number}: {line[:40]!r} is no pair of tokens with a space between"
                )
            merges.append(_pair(line))
    special = {END_OF_TEXT: vocab[END_OF_TEXT]} if END_OF_TEXT in vocab else {}
    try:
        return ByteLevelBPE(vocab, merges, special)
    except ValueError as error:
        raise ValueError(f"{vocab_path} and {merges_path.name} do not belong together: {error}") from None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); take a whole copy") from None


def _bpe_parts(tokenizer: ByteLevelBPE) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {**tokenizer.vocab, **tokenizer.special_tokens},
            "merges": [list(pair) for pair in tokenizer.merges],
        },
    }


def _wordpiece_parts(tokenizer: WordPiece) -> dict[str, Any]:
    return {
        "normalizer": SEPARATE_CHINESE if tokenizer.separate_chinese else None,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": PREFIX, "cleanup": False},
        "model": {
            "type": "WordPiece",
            "unk_token": tokenizer.unk_token,
            "continuing_subword_prefix": PREFIX,
            "max_input_chars_per_word": tokenizer.max_chars,
            "vocab": {**tokenizer.vocab, **tokenizer.special_tokens},
        },
    }


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge as the library writes it now (a list) or wrote it once, and OpenAI does (two words in a line)."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second
