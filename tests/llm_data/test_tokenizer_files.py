"""Files of tokenisers as others write them, or damage them: read as the `tokenizers` library reads them, or refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_data.tokenizers.bpe import ByteLevelBPE
from llm_data.tokenizers.tokenizer_json import from_json, load, load_gpt2
from tokenizer_texts import END, library_bpe
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

TEXTS = [f"some words {END} ab", "é 中文 don't\n\n  x", "[CLS] a b words [UNK]", ""]
GONE = object()
TEXT_ALONE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
OFFSETS = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": False}


def bpe() -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(library_bpe(["some words words of some text"] * 3, 285, (END,)).to_str())
    return whole


def wordpiece() -> dict[str, Any]:
    tokens = ["[UNK]", "a", "##b", "b", "##a", "é", "words", "##s", "some", "中", "文"]
    library = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(False, True, False, False)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(cleanup=False)
    library.add_special_tokens(["[UNK]", "[CLS]"])
    whole: dict[str, Any] = json.loads(library.to_str())
    return whole


def changed(whole: Any, place: tuple[str | int, ...], value: object) -> Any:
    if not place:
        return value
    whole = copy.deepcopy(whole)
    part = whole
    for key in place[:-1]:
        part = part[key]
    if value is GONE:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    return whole


def chained(whole: dict[str, Any]) -> dict[str, Any]:
    """The same file, each part in a chain of one."""
    lists = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    chains = {part: {"type": "Sequence", name: [whole[part]] if whole[part] else []} for part, name in lists.items()}
    post = {"type": "Sequence", "processors": [TEXT_ALONE, {"type": "Sequence", "processors": []}, OFFSETS]}
    return {**whole, **chains, "post_processor": post}


def published(whole: dict[str, Any]) -> dict[str, Any]:
    """As GPT-2's own file is: a model without a type and options, merges as text, a token that is "normalized"."""
    model = {"vocab": whole["model"]["vocab"], "merges": [" ".join(pair) for pair in whole["model"]["merges"]]}
    added = [{**token, "normalized": True} for token in whole["added_tokens"]]
    return {**whole, "model": model, "added_tokens": added, "post_processor": OFFSETS}


def assert_the_librarys(text: str, name: str = "") -> None:
    """Ids and texts are the library's; special tokens too, where ours look for them."""
    ours, library = from_json(text), Tokenizer.from_str(text)
    for sample in TEXTS:
        library.encode_special_tokens = True
        ids = library.encode(sample).ids
        assert ours.encode(sample) == ids, name
        assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False), name
        library.encode_special_tokens = False
        if isinstance(ours, ByteLevelBPE):
            assert ours.encode(sample, allowed_special=True) == library.encode(sample).ids, name


def test_other_forms_of_the_same_file_mean_the_same() -> None:
    plain = from_json(json.dumps(bpe()))
    for form in (chained(bpe()), published(bpe()), {**bpe(), "post_processor": TEXT_ALONE}):
        assert from_json(json.dumps(form)) == plain
        assert_the_librarys(json.dumps(form))
    kept = {key: value for key, value in bpe().items() if key in ("model", "pre_tokenizer", "decoder")}
    assert_the_librarys(json.dumps(kept))
    for form in (chained(wordpiece()), changed(wordpiece(), ("model", "type"), GONE)):
        assert from_json(json.dumps(form)) == from_json(json.dumps(wordpiece()))
        assert_the_librarys(json.dumps(form))
    assert_the_librarys(json.dumps(changed(wordpiece(), ("normalizer",), {"type": "Sequence", "normalizers": []})))


TWICE = changed(TEXT_ALONE, ("single",), TEXT_ALONE["single"] * 2)
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}


@pytest.mark.parametrize(
    ("whole", "place", "value", "message"),
    [
        (bpe(), ("post_processor",), TWICE, 'post_processor = "TemplateProcessing" is not supported'),
        (bpe(), ("post_processor",), {**TEXT_ALONE, "single": []}, "post_processor = "),
        (bpe(), ("post_processor",), {"type": "Sequence", "processors": [OFFSETS, TWICE]}, "post_processor = "),
        (bpe(), ("pre_tokenizer",), {"type": "Sequence", "pretokenizers": [bpe()["decoder"]] * 2}, "pre_tokenizer = "),
        (bpe(), ("pre_tokenizer",), {"type": "Sequence", "pretokenizers": []}, "pre_tokenizer = null"),
        (bpe(), ("model", "ignore_merges"), True, "ignore_merges = true"),
        (bpe(), ("model", "dropout"), 0.5, "dropout = 0.5"),
        (bpe(), ("added_tokens", 0, "special"), False, "special of the added token"),
        (bpe(), ("added_tokens", 0, "id"), 77, "id of the added token '<|endoftext|>' = 77"),
        (bpe(), ("model", "vocab", "a"), 5, "an id used twice"),
        (bpe(), ("model", "merges", 0), ["Q", "zz"], "`zz` out of vocabulary"),
        (bpe(), ("model", "merges"), ["no-space"], "no JSON object with a model"),
        (wordpiece(), ("normalizer",), {**BERT, "lowercase": True}, "normalizer = .*lowercase"),
        (wordpiece(), ("normalizer",), {**BERT, "lowercase": False}, "normalizer = "),
        (wordpiece(), ("decoder", "cleanup"), True, "decoder = "),
        (wordpiece(), ("model", "unk_token"), "[NONE]", r"unk_token '\[NONE\]' is not in the vocabulary"),
    ],
)
def test_what_would_encode_otherwise_is_refused_by_name(
    whole: dict[str, Any], place: tuple[str, ...], value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^f\.json.*{message}"):
        from_json(json.dumps(changed(whole, place, value)), "f.json")


def test_tokens_looked_for_in_two_passes_are_refused() -> None:
    token = {**bpe()["added_tokens"][0], "content": f"{END}>", "id": len(bpe()["model"]["vocab"]), "normalized": True}
    whole = bpe()
    whole["added_tokens"].append(token)
    with pytest.raises(ValueError, match="differ in normalized"):
        from_json(json.dumps(whole))


def places(part: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Places in a file, of each list and object the first few."""
    yield at
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for _, (key, value) in zip(range(9), inner, strict=False):
        yield from places(value, (*at, key))


@pytest.mark.parametrize("make", [bpe, wordpiece])
@pytest.mark.parametrize("form", [dict, chained])
def test_a_damaged_file_is_read_as_the_library_does_or_refused(make: Any, form: Any) -> None:
    whole = form(make())
    accepted = refused = 0
    for place in places(whole):
        for value in (GONE, None, -1, 2.5, True, "x", [1], {}):
            if value is GONE and not place:
                continue
            text = json.dumps(changed(whole, place, value))
            try:
                from_json(text, "f.json")
            except ValueError as error:
                assert str(error).startswith("f.json") and "\n" not in str(error)
                refused += 1
            else:
                assert_the_librarys(text, f"{place} = {value}")
                accepted += 1
    assert accepted > 10 and refused > 150


@pytest.mark.parametrize("damage", ["", "{", "[" * 100_000, '{"model": ' * 5000, "\ufeff{}", "null", '"model"', "NaN"])
def test_what_is_no_json_object_is_refused(damage: str) -> None:
    with pytest.raises(ValueError, match=r"^f\.json is no tokenizer\.json: no JSON object with a model"):
        from_json(damage, "f.json")


def test_a_file_cut_short_or_of_other_bytes_is_refused(tmp_path: Path) -> None:
    text = json.dumps(bpe())
    for end in range(0, len(text), 331):
        with pytest.raises(ValueError, match=r"^f\.json"):
            from_json(text[:end], "f.json")
    (tmp_path / "a.json").write_bytes(b"\xff" + text.encode())
    with pytest.raises(ValueError, match=r"a\.json is not UTF-8 \(invalid start byte at byte 0\)"):
        load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("encoder.json", "[1", r"encoder\.json: no JSON object"),
        ("encoder.json", "[" * 100_000, r"encoder\.json: no JSON object"),
        ("encoder.json", "[]", r"encoder\.json: no JSON object"),
        ("encoder.json", '{"a": "0"}', "ids, which are whole numbers"),
        ("encoder.json", '{"a": true}', "ids, which are whole numbers"),
        ("encoder.json", '{"a": 0}', "do not belong together: the vocabulary has no token for 255"),
        ("vocab.bpe", "#version: 0.2\na b c\n", r"vocab\.bpe, line 2: 'a b c' is no pair"),
        ("vocab.bpe", "a\n", r"vocab\.bpe, line 1: 'a' is no pair"),
        ("vocab.bpe", "a zz\n", r"do not belong together: merge 0 \('a', 'zz'\): 'zz' is not in the vocabulary"),
        ("vocab.bpe", b"\xff", r"vocab\.bpe is not UTF-8"),
    ],
)
def test_openais_files_when_damaged(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    whole = bpe()["model"]
    files = {"encoder.json": json.dumps(whole["vocab"]), "vocab.bpe": "\n".join(map(" ".join, whole["merges"]))}
    for each, text in {**files, name: content}.items():
        (tmp_path / each).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        load_gpt2(tmp_path)
