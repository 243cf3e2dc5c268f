"""The cache after damage, without a home, on a full disk: made again, or one line; never half of a file as a whole."""

import errno
import json
import os
import shutil

import llm_data.shards.writer as shards_module
import pytest
from llm_data.datamodule import LLMDataModule
from llm_data.text.corpora import load_corpus
from llm_data.text.python_source import library_fingerprint, read_docstrings
from llm_data.whole_files import is_sealed, read_facts, seal, write_facts, write_in_place
from llm_data.workspace import cache_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A text, and a cache in which all of it is."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "own.txt").write_text("\n\n".join(f"document {number} about {number * number}" for number in range(150)))
    ready(folder, folder / "cache")
    return folder


def ready(folder, cache, tokenizer="bpe-270"):
    options = {"context": 16, "batch_size": 4, "val_percent": 10, "test_percent": 0, "progress": False}
    data = LLMDataModule(f"text:{folder}/own.txt", tokenizer, cache=cache, **options)
    data.prepare_data()
    data.setup()
    return data


def shown(data):
    manifest = data.tokens("train").manifest
    return [batch["input_ids"].tolist() for batch in data.val_dataloader()], data.bytes_per_token("train"), manifest


def change(*place, value):
    """Set one value in a JSON file."""

    def damage(path):
        whole = part = json.loads(path.read_text())
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        path.write_text(json.dumps(whole))

    return damage


MANIFEST = "shards/*/train/manifest.json"
ROWS = "shards/*/train/rows/*/manifest.json"
TOKENIZER = "tokenizers/*/tokenizer.json"


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        (MANIFEST, change("shards", 0, "tokens", value=999)),
        (MANIFEST, change("shards", 0, "documents", value=1)),
        (MANIFEST, change("shards", 0, "text_bytes", value="x")),
        (MANIFEST, change("shards", 0, "text_bytes", value=7)),
        (MANIFEST, change("shards", value=[])),
        (MANIFEST, change("shards", value=None)),
        (MANIFEST, change("begin_of_text", value=[5])),
        (MANIFEST, change("dtype", value="float32")),
        (MANIFEST, change("end_of_text", value=7)),
        (MANIFEST, lambda path: path.write_text("[" * 100_000)),
        (MANIFEST, lambda path: path.write_bytes(b"\xff" + path.read_bytes())),
        (ROWS, change("rows", value=999)),
        (ROWS, change("packing", value=["best_fit"])),
        (ROWS, change("pad_id", value=None)),
        (ROWS, change("context", value=8)),
        ("shards/*/train/rows/*/ids.npy", lambda path: path.write_bytes(path.read_bytes()[:-8])),
        ("shards/*/train/rows/*/filled.npy", lambda path: path.write_bytes(b"\x93NUMPY" + b"\xff" * 300)),
        (TOKENIZER, lambda path: path.write_text("")),
        (TOKENIZER, lambda path: path.write_text(path.read_text()[:3000])),
        (TOKENIZER, lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:])),
        (TOKENIZER, lambda path: path.unlink()),
        (TOKENIZER, change("model", "vocab", "a", value=900)),
        ("tokenizers/*/tokenizer_config.json", lambda path: path.unlink()),
        ("tokenizers/*/tokenizer_config.json", change("eos_token", value="<|pad|>")),
        ("tokenizers/*/complete", lambda path: path.write_text("")),
    ],
)
def test_what_is_damaged_in_the_cache_is_made_again(made, tmp_path, pattern, damage):
    expected = shown(ready(made, made / "cache"))
    shutil.copytree(made / "cache", tmp_path / "cache")
    [path] = (tmp_path / "cache").glob(pattern)
    damage(path)
    assert shown(ready(made, tmp_path / "cache")) == expected


def test_facts_and_seals_know_every_change(tmp_path):
    path = tmp_path / "facts.json"
    write_facts(path, {"a": [1, 2.5, "x"], "b": None})
    assert read_facts(path) == {"a": [1, 2.5, "x"], "b": None}
    for text in (path.read_text().replace("2.5", "2.6"), path.read_text()[:-1], "[]", "3", "{}", '{"checksum": 1}'):
        path.write_text(text)
        assert read_facts(path) is None
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_text(file.name)
    assert not is_sealed(tmp_path / "seal")
    seal(tmp_path / "seal", files)
    assert is_sealed(tmp_path / "seal")
    files[1].write_text("owt")
    assert not is_sealed(tmp_path / "seal")
    files[1].unlink()
    assert not is_sealed(tmp_path / "seal")


def test_documents_of_the_library_cut_short_are_taken_apart_again(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr("llm_data.text.python_source.source_files", lambda: [tmp_path / "module.py"])
    source = "\n".join(f'def f{n}():\n    """{"words " * 20} {n}"""\n' for n in range(5))
    (tmp_path / "module.py").write_text(source)
    whole = list(read_docstrings())
    assert len(whole) == 5
    [path] = tmp_path.glob("python-docstrings/*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    for damaged in ("".join(lines[:3]), "".join(lines)[:-10], ""):
        path.write_text(damaged)
        assert list(read_docstrings()) == whole
    before = library_fingerprint()
    (tmp_path / "module.py").write_text(source.replace("words", "lines"))  # of the same size
    assert library_fingerprint() != before and list(read_docstrings()) != whole


# -- a disk that is full -------------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "kept").write_text("before")
    with pytest.raises(
        OSError, match=r"kept cannot be written \(No space left on device\); make room there, or choose"
    ):
        write_in_place(tmp_path / "kept", full)
    with pytest.raises(OSError, match=r"kept/file cannot be written \(.*(exists|directory)"):
        write_in_place(tmp_path / "kept" / "file", lambda path: path.write_text("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept").read_text() == "before"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("transformers.PreTrainedTokenizerFast.save_pretrained", r"tokenizer\.json"),
        ("llm_data.tokenizers.named.shutil.copyfile", r"tokenizer.*\.json"),
        ("llm_data.shards.writer._save", r"tokens\.npy"),
        ("llm_data.rows.table._write", "the rows in"),
    ],
)
def test_a_full_disk_is_one_line_and_the_next_run_is_whole(made, tmp_path, monkeypatch, place, name):
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(OSError, match=f"{name}.* cannot be written .*No space left on device") as caught:
            ready(made, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.npy")) or place.endswith("_write")
    assert shown(ready(made, tmp_path)) == shown(ready(made, made / "cache"))


# -- folders -------------------------------------------------------------------------------------------------------


def test_without_a_home_the_error_says_what_to_set(monkeypatch, tmp_path):
    def nobody(_):
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("COURSE_CACHE", raising=False)
    with pytest.raises(OSError, match="this user has no home folder; set COURSE_CACHE"):
        cache_folder()
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_a_moved_project_has_the_same_rows_and_another_project_its_own(tmp_path, monkeypatch):
    shown_rows, plans = [], []
    for name, word in (("one", "alpha"), ("two", "gamma"), ("moved", "alpha")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "own.txt"
        path.write_text("\n\n".join(f"{word} {number:04}" for number in range(200)))
        os.utime(path, (315532800, 315532800))
        monkeypatch.chdir(tmp_path / name)
        data = LLMDataModule("text:own.txt", "bpe-270", 16, 4, cache=tmp_path / "cache", progress=False, test_percent=0)
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
        shown_rows.append(next(iter(loader))["input_ids"].tolist())
        plans.append(loader.state_dict())
        assert word in data.tokenizer.decode(shown_rows[-1][0])
        assert data.state_dict()["split"]["fingerprint"] == load_corpus(f"text:{path}").fingerprint
    assert shown_rows[0] == shown_rows[2] != shown_rows[1]
    assert plans[0] == plans[2] != plans[1]
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 3
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 2


def test_the_fingerprint_is_of_the_content(tmp_path):
    def fingerprint(name, text, **options):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        os.utime(path, (0, 0))
        return load_corpus(f"text:{path}", **options).fingerprint

    base = fingerprint("a/own.txt", "one two")
    assert fingerprint("b/other.md", "one two") == base
    others = [
        fingerprint("a/own.txt", "two one"),
        fingerprint("c/own.jsonl", "one two"),
        fingerprint("a/own.txt", "one two", errors="replace"),
    ]
    assert len({base, *others}) == 4


@pytest.mark.parametrize("context", [10**4, 10**8, 2**63, 10**30])
def test_a_context_longer_than_the_text_is_refused_before_rows_are_planned(made, tmp_path, monkeypatch, context):
    monkeypatch.setattr("llm_data.rows.table.plan_rows", lambda *_: pytest.fail("rows were planned"))
    shutil.copytree(made / "cache", tmp_path / "cache")
    options = {"val_percent": 10, "test_percent": 0, "progress": False, "cache": tmp_path / "cache"}
    data = LLMDataModule(f"text:{made}/own.txt", "bpe-270", context, **options)
    with pytest.raises(
        ValueError, match=rf"context={context} and text:.* has [\d,]+ tokens to train on; lower context"
    ):
        data.prepare_data()


def test_a_context_of_all_tokens_is_taken(made, tmp_path):
    number = ready(made, made / "cache").tokens("train").manifest.tokens
    options = {"val_percent": 10, "test_percent": 0, "progress": False, "cache": tmp_path}
    LLMDataModule(f"text:{made}/own.txt", "bpe-270", number, **options).prepare_data()
    with pytest.raises(ValueError, match="lower context"):
        LLMDataModule(f"text:{made}/own.txt", "bpe-270", number + 1, **options).prepare_data()
    assert number < shards_module.SHARD_CHARACTERS
