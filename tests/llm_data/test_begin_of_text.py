"""Tokenizers that begin each text with a token of its own, and those whose ids have gaps."""

import json

import pytest
from llm_data.datamodule import LLMDataModule
from llm_data.measures import bits_per_byte
from llm_data.text.corpora import Corpus
from llm_data.tokenizers.fast import begin_ids, character_tokenizer, tokenizer_hash, train_fast_tokenizer, vocab_size
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TEXTS = [f"w{number} w{number * 7 % 40} w{number * 3 % 40}" for number in range(40)]
BOS, EOS = 40, 41


def words(template="<bos> $A", gap=0):
    """A tokenizer of words, which closes texts too where the template says so."""
    vocab = {f"w{number}": number for number in range(40)} | {"<bos>": BOS, "<eos>": EOS + gap, "<pad>": 42 + gap}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(["<bos>", "<eos>", "<pad>"])
    if template:
        ids = [("<bos>", BOS), ("<eos>", EOS + gap)]
        raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def data_of(tokenizer, folder, **options):
    corpus = Corpus("made", "made", "1", lambda: iter(TEXTS), val_percent=0, test_percent=0)
    options = {"context": 8, "batch_size": 4, "cache": folder, "progress": False, **options}
    data = LLMDataModule(corpus, tokenizer, **options)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", []),
        ("$A", []),
        ("$A <eos>", []),
        ("<bos> $A", [BOS]),
        ("<bos> $A <eos>", [BOS]),
        ("<bos> <bos> $A", [BOS] * 2),
    ],
)
def test_what_stands_before_a_text(template, expected):
    tokenizer = words(template)
    assert begin_ids(tokenizer) == expected
    assert tokenizer("w5 w6")["input_ids"][: len(expected) + 2] == [*expected, 5, 6]


def test_what_was_asked_for_before_does_not_matter():
    tokenizer = words()
    tokenizer("w1", padding="max_length", max_length=6, truncation=True)
    state = tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation
    assert state[0] and state[1] and begin_ids(tokenizer) == [BOS]
    assert (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation) == state


def test_the_courses_tokenizers_put_nothing_before_a_text():
    assert begin_ids(train_fast_tokenizer(TEXTS, 300)) == []
    assert begin_ids(character_tokenizer(["xyz"])) == []  # which cannot spell an "a"


@pytest.mark.parametrize("packing", ["best_fit", "concat", "dynamic"])
@pytest.mark.parametrize("template", ["<bos> $A", "<bos> $A <eos>"])
def test_each_document_begins_as_the_tokenizer_begins_a_text(tmp_path, template, packing):
    data = data_of(words(template), tmp_path, packing=packing)
    tokens = data.tokens("train")
    for number, text in enumerate(TEXTS):
        assert tokens[number].tolist() == [BOS, *(int(word[1:]) for word in text.split()), EOS]
    for batch in data.train_dataloader():
        if packing != "concat":  # which cuts documents anywhere
            assert (batch["input_ids"][:, 0] == BOS).all()
        assert (batch["labels"][:, 0] == -100).all()
        assert not (batch["labels"] == BOS).any() or packing == "concat"


def test_begin_tokens_are_no_text_in_bits_per_byte(tmp_path):
    with_begin, without = (data_of(words(template), tmp_path / str(len(template))) for template in ("<bos> $A", ""))
    manifest = with_begin.tokens("train").manifest
    assert manifest.begin_of_text == [BOS] and manifest.tokens == manifest.text_tokens + len(TEXTS)
    assert (
        manifest.text_tokens == without.tokens("train").manifest.tokens == sum(len(text.split()) + 1 for text in TEXTS)
    )
    assert with_begin.bytes_per_token("train") == without.bytes_per_token("train")
    expected = bits_per_byte(2.0, manifest.text_tokens, manifest.text_bytes)
    assert bits_per_byte(2.0, 1, with_begin.bytes_per_token("train")) == pytest.approx(expected)


def test_the_hash_follows_what_stands_before_a_text():
    hashes = [tokenizer_hash(words(template)) for template in ("", "<bos> $A", "<bos> <bos> $A", "<bos> $A <eos>")]
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    ("gap", "dtype"), [(0, "uint16"), (100, "uint16"), (65_536 - 43, "uint16"), (65_536, "uint32")]
)
def test_ids_with_gaps(tmp_path, gap, dtype):
    tokenizer = words(gap=gap)
    data = data_of(tokenizer, tmp_path)
    assert len(tokenizer) == 43 and data.vocab_size == vocab_size(tokenizer) == 43 + gap
    assert data.tokens("train").manifest.dtype == dtype
    largest = max(int(batch["input_ids"].max()) for batch in data.train_dataloader())
    assert largest == max(tokenizer.get_vocab().values()) < data.vocab_size


# -- folders that others wrote -------------------------------------------------------------------------------------


def saved(folder, **changes):
    words().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_code_of_a_folder_is_never_run(tmp_path, monkeypatch):
    folder = saved(tmp_path / "own", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(ValueError, match=r"tokenizer .*own"):
        data_of(str(folder), tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"model": 1}', '{"model": {"type": "BPE", "vocab": [], "merges": []}}', b"\xff\xfe"]
)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, damage):
    folder = saved(tmp_path / "own")
    (folder / "tokenizer.json").write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    with pytest.raises(ValueError, match=r"^tokenizer '.*own' is neither") as caught:
        data_of(str(folder), tmp_path / "cache")
    assert "\n" not in str(caught.value)
