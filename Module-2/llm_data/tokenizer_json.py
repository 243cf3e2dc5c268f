"""Tokenisers as files: Hugging Face's `tokenizer.json`, both ways, and OpenAI's two files of GPT-2.

What `save` writes, `tokenizers.Tokenizer.from_file` loads and encodes alike; what the library saves, `load` reads, as
long as it is a byte-level BPE cut by GPT-2's pattern, or a WordPiece cut by BERT's. Anything else would encode
otherwise than its file says, and is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_data.bpe import ByteLevelBPE
from llm_data.wordpiece import PREFIX, WordPiece

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
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(to_json(tokenizer), encoding="utf-8")
    partial.replace(path)


def load(path: Path | str) -> ByteLevelBPE | WordPiece:
    """Read a tokeniser from a `tokenizer.json`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no such file, or asks for something that these tokenisers do not do, named.
    """
    return from_json(Path(path).read_text(encoding="utf-8"), str(path))


def from_json(text: str, name: str = "tokenizer.json") -> ByteLevelBPE | WordPiece:
    """Read a tokeniser from the text of a `tokenizer.json`; `name` stands in the errors. Errors as for `load`."""
    try:
        whole = json.loads(text)
        kind = whole["model"]["type"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{name} is no tokenizer.json: no JSON object with a model and its type") from None
    if kind not in ("BPE", "WordPiece"):
        raise ValueError(f"{name}: model {kind!r} is not supported; BPE and WordPiece are")
    for part in ("truncation", "padding"):
        _only(name, part, whole.get(part), [None])
    special = {}
    for added in whole.get("added_tokens", []):
        for flag, needed in (("special", True), ("single_word", False), ("lstrip", False), ("rstrip", False)):
            _only(name, f"{flag} of the added token {added['content']!r}", added.get(flag, False), [needed])
        special[added["content"]] = added["id"]
    return (_read_bpe if kind == "BPE" else _read_wordpiece)(name, whole, special)


def load_gpt2(folder: Path | str) -> ByteLevelBPE:
    """GPT-2's tokeniser from OpenAI's `encoder.json` (ids) and `vocab.bpe` (merges).

    Raises:
        FileNotFoundError: when one of the two is missing.
        ValueError: when the two do not belong together.
    """
    folder = Path(folder)
    vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
    special = {END_OF_TEXT: vocab[END_OF_TEXT]} if END_OF_TEXT in vocab else {}
    return ByteLevelBPE(vocab, merges, special)


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
        "normalizer": _SEPARATE_CHINESE if tokenizer.separate_chinese else None,
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


_SEPARATE_CHINESE = {
    "type": "BertNormalizer",
    "clean_text": False,
    "handle_chinese_chars": True,
    "strip_accents": False,
    "lowercase": False,
}


def _read_bpe(name: str, whole: Mapping[str, Any], special: dict[str, int]) -> ByteLevelBPE:
    model = whole["model"]
    _only(name, "normalizer", whole.get("normalizer"), [None])
    _only(name, "pre_tokenizer", _type(whole.get("pre_tokenizer")), ["ByteLevel"])
    _only(name, "pre_tokenizer.add_prefix_space", whole["pre_tokenizer"].get("add_prefix_space", True), [False])
    _only(name, "pre_tokenizer.use_regex", whole["pre_tokenizer"].get("use_regex", True), [True])
    if not _adds_nothing(whole.get("post_processor")):
        _only(name, "post_processor", _type(whole.get("post_processor")), [None, "ByteLevel"])
    _only(name, "decoder", _type(whole.get("decoder")), ["ByteLevel"])
    _only(name, "dropout", model.get("dropout"), [None, 0.0])
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        _only(name, option, model.get(option), [None, ""])
    for option in ("byte_fallback", "ignore_merges"):
        _only(name, option, model.get(option, False), [False])
    merges = [_pair(merge) for merge in model["merges"]]
    return ByteLevelBPE(model["vocab"], merges, special)


def _read_wordpiece(name: str, whole: Mapping[str, Any], special: dict[str, int]) -> WordPiece:
    model = whole["model"]
    _only(name, "normalizer", whole.get("normalizer"), [None, _SEPARATE_CHINESE])
    _only(name, "pre_tokenizer", _type(whole.get("pre_tokenizer")), ["BertPreTokenizer"])
    if not _adds_nothing(whole.get("post_processor")):
        _only(name, "post_processor", _type(whole.get("post_processor")), [None])
    _only(name, "decoder", whole.get("decoder"), [{"type": "WordPiece", "prefix": PREFIX, "cleanup": False}])
    _only(name, "continuing_subword_prefix", model["continuing_subword_prefix"], [PREFIX])
    return WordPiece(
        model["vocab"],
        model["unk_token"],
        model["max_input_chars_per_word"],
        whole.get("normalizer") is not None,
        special,
    )


def _adds_nothing(part: Mapping[str, Any] | None) -> bool:
    """Whether a post-processor leaves ids alone: "ByteLevel" moves offsets, and transformers writes a bare "$A"."""
    kind = _type(part)
    return kind in (None, "ByteLevel") or (kind == "TemplateProcessing" and not (part or {})["special_tokens"])


def _type(part: Mapping[str, Any] | None) -> str | None:
    return None if part is None else part["type"]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge as the library writes it now (a list) or wrote it once, and OpenAI does (two words in a line)."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _only(name: str, what: str, value: Any, supported: list[Any]) -> None:
    if value not in supported:
        shown = " or ".join(json.dumps(option) for option in supported)
        raise ValueError(f"{name}: {what} = {json.dumps(value)} is not supported; only {shown} is")
