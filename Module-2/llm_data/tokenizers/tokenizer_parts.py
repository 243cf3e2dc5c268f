"""What a `tokenizer.json` asks for, as the `tokenizers` library understands it, and whether our tokenisers do the same.

The library reads each file first, so an old form, a part left out or a wrapper around nothing means here what it means
there. What then differs from a byte-level BPE cut by GPT-2's pattern, or a WordPiece cut by BERT's, is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, models

from llm_data.errors import is_failure, one_line
from llm_data.tokenizers.wordpiece import PREFIX

SEPARATE_CHINESE = {
    "type": "BertNormalizer",
    "clean_text": False,
    "handle_chinese_chars": True,
    "strip_accents": False,
    "lowercase": False,
}
# A chain of one part, or of none, is that part or none; the library names its list in four ways.
CHAINS = ("normalizers", "pretokenizers", "processors", "decoders")
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
OPTIONS = {
    "BPE": (
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
    ),
    "WordPiece": ("unk_token", "continuing_subword_prefix", "max_input_chars_per_word"),
}


def read_whole(text: str) -> dict[str, Any]:
    """The parts of a `tokenizer.json` in the library's present form, with all that a file may leave out.

    Vocabulary and merges are the file's own: written out again by the library, they would lack what it drops in
    silence, and an id near 2**32 would keep it busy for minutes.

    Raises:
        ValueError: when the library cannot read it.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
        kind = type(tokenizer.model).__name__
        model = {"type": kind, **{name: getattr(tokenizer.model, name) for name in OPTIONS.get(kind, ())}}
        added = [
            {"id": number, **{flag: getattr(token, flag) for flag in ("content", *FLAGS)}}
            for number, token in tokenizer.get_added_tokens_decoder().items()
        ]
        tokenizer.model = models.BPE()
        rest = json.loads(tokenizer.to_str())
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ValueError(one_line(error)) from None
    given = json.loads(text)
    asked = {token["content"]: token["id"] for token in given.get("added_tokens") or []}
    for token in added:
        token["id_in_file"] = asked[token["content"]]
    model |= {name: given["model"][name] for name in ("vocab", "merges") if name in given["model"]}
    return {**rest, "model": model, "added_tokens": added}


def refuse_parts(name: str, whole: Mapping[str, Any]) -> None:
    """Refuse what our tokenisers do not do.

    Args:
        name: the file, for the errors.
        whole: what `read_whole` gave, or a file's own object, of which a part may be missing.

    Raises:
        ValueError: naming the first part or option that is not supported.
    """
    model = whole["model"]
    if model["type"] not in OPTIONS:
        raise ValueError(f"{name}: model {model['type']!r} is not supported; BPE and WordPiece are")
    for part in ("truncation", "padding"):
        _only(name, part, whole.get(part), [None])
    for added in whole.get("added_tokens", []):
        for flag in FLAGS[:-1]:
            _only(name, f"{flag} of the added token {added['content']!r}", added.get(flag, False), [flag == "special"])
        # The library gives an added token the model's own id, or the next free one, whatever its file says.
        _only(name, f"id of the added token {added['content']!r}", added.get("id_in_file", added["id"]), [added["id"]])
    # Those of either kind are looked for in a pass of their own, so that of two at one place not the longer would win.
    if len({bool(added.get("normalized")) for added in whole.get("added_tokens", [])}) > 1:
        raise ValueError(f"{name}: added tokens that differ in normalized are not supported; only all or none is")
    (_refuse_bpe if model["type"] == "BPE" else _refuse_wordpiece)(name, model, {p: plain(whole.get(p)) for p in PARTS})


def refuse_affixes(name: str, model: Mapping[str, Any]) -> None:
    """Refuse marks at the ends of a BPE's tokens; before the library reads the file, since it panics over some."""
    if "merges" in model:
        for option in ("continuing_subword_prefix", "end_of_word_suffix"):
            _only(name, option, model.get(option), [None, ""])


def plain(part: Any) -> Any:
    """A part without the chain around it, where there is one part in the chain or none."""
    while isinstance(part, dict) and part.get("type") == "Sequence":
        inner = next((part[chain] for chain in CHAINS if chain in part), ())
        links = [link for link in map(plain, inner) if link is not None]
        if len(links) > 1:
            return {**part, **{chain: links for chain in CHAINS if chain in part}}
        part = links[0] if links else None
    return part


def _refuse_bpe(name: str, model: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    _only(name, "normalizer", parts["normalizer"], [None])
    _only(name, "pre_tokenizer", _type(parts["pre_tokenizer"]), ["ByteLevel"])
    _only(name, "pre_tokenizer.add_prefix_space", parts["pre_tokenizer"].get("add_prefix_space", True), [False])
    _only(name, "pre_tokenizer.use_regex", parts["pre_tokenizer"].get("use_regex", True), [True])
    _refuse_post_processor(name, parts["post_processor"])
    _only(name, "decoder", _type(parts["decoder"]), ["ByteLevel"])
    _only(name, "dropout", model.get("dropout"), [None, 0.0])
    refuse_affixes(name, model)
    # `unk_token` and `fuse_unk` may be anything: with a token for each of the 256 bytes nothing is unknown.
    for option in ("byte_fallback", "ignore_merges"):
        _only(name, option, model.get(option, False), [False])


def _refuse_wordpiece(name: str, model: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    _only(name, "normalizer", parts["normalizer"], [None, SEPARATE_CHINESE])
    _only(name, "pre_tokenizer", _type(parts["pre_tokenizer"]), ["BertPreTokenizer"])
    _refuse_post_processor(name, parts["post_processor"])
    _only(name, "decoder", parts["decoder"], [{"type": "WordPiece", "prefix": PREFIX, "cleanup": False}])
    _only(name, "continuing_subword_prefix", model["continuing_subword_prefix"], [PREFIX])


def _refuse_post_processor(name: str, part: Any) -> None:
    """ "ByteLevel" moves offsets only, and a template that is the text alone, as transformers writes it, does nothing.
    Any other may add ids, or double them ("$A $A")."""
    for link in part.get("processors", [part]) if isinstance(part, dict) else [part]:
        if not (_type(link) == "TemplateProcessing" and _is_text_alone(link["single"])):
            _only(name, "post_processor", _type(link), [None, "ByteLevel"])


def _is_text_alone(template: Any) -> bool:
    return len(template) == 1 and template[0].get("Sequence", {}).get("id") == "A"


def _type(part: Any) -> Any:
    return part["type"] if isinstance(part, dict) else part


def _only(name: str, what: str, value: Any, supported: list[Any]) -> None:
    if value not in supported:
        options = " or ".join(json.dumps(option) for option in supported)
        raise ValueError(f"{name}: {what} = {json.dumps(value)[:200]} is not supported; only {options} is")
