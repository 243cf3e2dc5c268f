import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import llm_data.shards.writer as shards_module
import numpy as np
import psutil
import pytest
from llm_data.rows.table import RowTable
from llm_data.shards.manifest import MANIFEST, Manifest, ShardError, write_in_place
from llm_data.shards.naive import ShardReader, write_shard
from llm_data.shards.reader import TokenShards
from llm_data.shards.writer import build_shards
from llm_data.text.corpora import Corpus, load_corpus
from llm_data.tokenizers.fast import character_tokenizer, train_fast_tokenizer

DOCUMENTS = [f"document {number}: " + "some words of it, " * (number % 7 + 1) for number in range(120)]
OPTIONS = {"shard_characters": 1500, "progress": False, "num_workers": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return train_fast_tokenizer(DOCUMENTS, 300)


def corpus_of(documents, fingerprint="1"):
    return Corpus("made", "made", fingerprint, lambda: iter(documents), val_percent=0, test_percent=0)


def build(folder, tokenizer, documents=DOCUMENTS, fingerprint="1", **options):
    return build_shards(corpus_of(documents, fingerprint), "train", tokenizer, folder, **{**OPTIONS, **options})


def texts(folder, tokenizer):
    tokens = TokenShards(folder)
    assert all(tokens[document][-1] == tokenizer.eos_token_id for document in range(len(tokens)))
    return [tokenizer.decode(tokens[document][:-1]) for document in range(len(tokens))]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".npy"}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_what_goes_in_comes_out(tmp_path, tokenizer, workers):
    built = build(tmp_path, tokenizer, num_workers=workers)
    assert texts(tmp_path, tokenizer) == DOCUMENTS
    manifest = built.manifest
    assert len(manifest.shards) > 5 and len(built.written) == len(manifest.shards) and manifest.complete
    assert manifest.documents == 120 and manifest.text_bytes == sum(map(len, DOCUMENTS))
    assert manifest.tokens == sum(len(tokenizer.encode(text)) + 1 for text in DOCUMENTS)
    assert manifest == Manifest.read(tmp_path) == TokenShards(tmp_path).manifest
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".npy") == ["lock", MANIFEST]


def test_the_short_writer_writes_the_same_files(tmp_path, tokenizer):
    built = build(tmp_path / "ours", tokenizer)
    tokens, first = TokenShards(tmp_path / "ours"), 0
    (tmp_path / "short").mkdir()
    for shard in built.manifest.shards:
        documents = [tokens[number].tolist() for number in range(first, first + shard.documents)]
        write_shard(tmp_path / "short" / shard.name, documents)
        reader = ShardReader(tmp_path / "short" / shard.name)
        assert [reader[number].tolist() for number in range(len(reader))] == documents
        first += shard.documents
    assert files(tmp_path / "short") == files(tmp_path / "ours")


def test_the_files_do_not_depend_on_the_workers(tmp_path, tokenizer):
    build(tmp_path / "one", tokenizer, num_workers=1)
    build(tmp_path / "four", tokenizer, num_workers=4)
    assert files(tmp_path / "one") == files(tmp_path / "four")


def test_a_second_run_reads_nothing(tmp_path, tokenizer):
    first = build(tmp_path, tokenizer)

    def unread():
        raise AssertionError("the corpus was read again")
        yield

    corpus = Corpus("made", "made", "1", unread, val_percent=0, test_percent=0)
    second = build_shards(corpus, "train", tokenizer, tmp_path, **OPTIONS)
    assert second.written == () and second.kept == first.written and second.manifest == first.manifest


def test_ids_are_wide_enough(tmp_path):
    texts_of_all = ["".join(map(chr, range(0x20, 0xD800))) + "".join(map(chr, range(0xE000, 0x1F000)))]
    wide = character_tokenizer(texts_of_all)
    assert len(wide) > 2**16
    built = build(tmp_path, wide, texts_of_all)
    assert built.manifest.dtype == "uint32" and texts(tmp_path, wide) == texts_of_all


def test_text_that_looks_like_an_end_is_text(tmp_path, tokenizer):
    forged = ["one<|endoftext|>two<|pad|>", "three"]
    build(tmp_path, tokenizer, forged)
    tokens = TokenShards(tmp_path)
    assert len(tokens) == 2
    for document in range(2):
        assert tokenizer.eos_token_id not in tokens[document][:-1] and tokenizer.pad_token_id not in tokens[document]


# -- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 55, 119])
def test_an_interrupted_run_is_finished_by_the_next(tmp_path, tokenizer, stop):
    def broken():
        yield from DOCUMENTS[:stop]
        raise KeyboardInterrupt

    corpus = Corpus("made", "made", "1", broken, val_percent=0, test_percent=0)
    with pytest.raises(KeyboardInterrupt):
        build_shards(corpus, "train", tokenizer, tmp_path, **OPTIONS)
    if stop:
        with pytest.raises(ShardError, match=r"no token shards|unfinished"):
            TokenShards(tmp_path)
    before = Manifest.read(tmp_path)
    built = build(tmp_path, tokenizer)
    assert built.kept == tuple(shard.name for shard in before.shards) if before else built.kept == ()
    assert len(built.kept) >= 3 or stop < 60
    assert texts(tmp_path, tokenizer) == DOCUMENTS
    whole = tmp_path / "whole"
    build(whole, tokenizer)
    assert files(whole) == files(tmp_path)


def test_interrupted_twice_keeps_what_the_first_run_made(tmp_path, tokenizer):
    def broken(stop):
        def read():
            yield from DOCUMENTS[:stop]
            raise KeyboardInterrupt

        return Corpus("made", "made", "1", read, val_percent=0, test_percent=0)

    for stop in (119, 80):
        with pytest.raises(KeyboardInterrupt):
            build_shards(broken(stop), "train", tokenizer, tmp_path, **OPTIONS)
        made = max(len(Manifest.read(tmp_path).shards), 3 if stop == 119 else made)
    assert len(build(tmp_path, tokenizer).kept) == made > 3


def test_threads_do_not_share_a_tokenizer(tmp_path, tokenizer, monkeypatch):
    """Encoding sets flags on a tokenizer and takes them back: shared, one thread would undo another's."""
    monkeypatch.setattr(shards_module, "PORTION_CHARACTERS", 1)
    encode, used = shards_module.encode_documents, []

    def watched(own, texts):
        assert id(own) not in used, "two threads encode with one tokenizer"
        used.append(id(own))
        time.sleep(0.002)
        try:
            return encode(own, texts)
        finally:
            used.remove(id(own))

    monkeypatch.setattr(shards_module, "encode_documents", watched)
    build(tmp_path, tokenizer, num_workers=4, shard_characters=100)
    assert texts(tmp_path, tokenizer) == DOCUMENTS


CHILD = """
import sys, time
from llm_data.text.corpora import Corpus
from llm_data.shards.writer import build_shards
from transformers import PreTrainedTokenizerFast
documents = open(sys.argv[3]).read().split("|")
def slowly():
    for document in documents:
        time.sleep(0.005)
        yield document
corpus = Corpus("made", "made", "1", slowly, val_percent=0, test_percent=0)
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[2])
build_shards(corpus, "train", tokenizer, sys.argv[1], shard_characters=1500, progress=False, num_workers=2)
"""


def test_killed_and_started_again(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text").write_text("|".join(DOCUMENTS))
    folder = tmp_path / "shards"
    command = [sys.executable, "-c", CHILD, folder, tmp_path / "tokenizer", tmp_path / "text"]
    child = subprocess.Popen(command)
    deadline = time.monotonic() + 100
    while not ((found := Manifest.read(folder)) and found.shards):
        assert child.poll() is None and time.monotonic() < deadline, "the child never wrote a shard"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    left = Manifest.read(folder)
    assert left is not None and left.shards and not left.complete
    # What a kill in the middle of a write leaves behind.
    (folder / f".train-00009.tokens.npy.{child.pid}").write_bytes(b"half")
    built = build(folder, tokenizer)
    assert set(built.kept) >= {shard.name for shard in left.shards} and built.written
    assert texts(folder, tokenizer) == DOCUMENTS
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_two_builders_at_once(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text").write_text("|".join(DOCUMENTS))
    command = [sys.executable, "-c", CHILD, tmp_path / "shards", tmp_path / "tokenizer", tmp_path / "text"]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert texts(tmp_path / "shards", tokenizer) == DOCUMENTS


# -- damaged -------------------------------------------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 40] ^= 1
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size - 2)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["flip", "truncate", "delete"])
@pytest.mark.parametrize("part", ["tokens", "lengths"])
def test_a_damaged_shard_is_named_and_rebuilt_and_no_other(tmp_path, tokenizer, damage, part):
    build(tmp_path, tokenizer)
    whole = files(tmp_path)
    path = tmp_path / f"train-00002.{part}.npy"
    damage(path)
    with pytest.raises(ShardError, match=r"shard train-00002 in .* is damaged; prepare_data"):
        TokenShards(tmp_path)
    if damage is not flip:  # sizes are seen even where checksums are not compared
        with pytest.raises(ShardError, match="train-00002"):
            TokenShards(tmp_path, verify=False)
    built = build(tmp_path, tokenizer)
    assert built.damaged == built.written == ("train-00002",) and "damaged and rebuilt: train-00002" in str(built)
    assert files(tmp_path) == whole


def test_a_shard_of_another_size_is_seen_without_checksums(tmp_path, tokenizer):
    build(tmp_path, tokenizer)
    for part in ("tokens", "lengths"):
        path = tmp_path / f"train-00001.{part}.npy"
        whole = path.read_bytes()
        np.save(path, np.load(path)[:-1])
        with pytest.raises(ShardError, match=r"train-00001 in .* has another size"):
            TokenShards(tmp_path, verify=False)
        path.write_bytes(whole)


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    before = path.stat().st_ino
    write_in_place(path, lambda unfinished: unfinished.write_text("new"))
    assert path.read_text() == "new" and path.stat().st_ino != before

    def half(unfinished):
        unfinished.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_in_place(path, half)
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and path.read_text() == "new"


def test_a_damaged_manifest_is_no_manifest(tmp_path, tokenizer):
    build(tmp_path, tokenizer)
    text = (tmp_path / MANIFEST).read_text()
    for broken in (text[:-5], "[]", '{"shards": []}', ""):
        (tmp_path / MANIFEST).write_text(broken)
        with pytest.raises(ShardError, match="holds no token shards"):
            TokenShards(tmp_path)
        assert len(build(tmp_path, tokenizer).written) == len(json.loads(text)["shards"])


# -- changed -------------------------------------------------------------------------------------------------------


def test_a_corpus_that_grew_costs_only_what_is_new(tmp_path, tokenizer):
    first = build(tmp_path, tokenizer)
    more = [*DOCUMENTS, "one more"]
    second = build(tmp_path, tokenizer, more, fingerprint="2")
    assert second.written == (first.manifest.shards[-1].name,)
    assert texts(tmp_path, tokenizer) == more
    third = build(tmp_path, tokenizer, DOCUMENTS[:30], fingerprint="3")
    assert texts(tmp_path, tokenizer) == DOCUMENTS[:30] and len(third.written) <= 1
    assert len(files(tmp_path)) == 2 * len(third.manifest.shards)


def test_another_tokenizer_keeps_nothing(tmp_path, tokenizer):
    build(tmp_path, tokenizer)
    other = train_fast_tokenizer(DOCUMENTS, 290)
    assert build(tmp_path, other).kept == ()
    assert texts(tmp_path, other) == DOCUMENTS


def test_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"num_workers=0 .* must be at least 1"):
        build(tmp_path, tokenizer, num_workers=0)
    endless = train_fast_tokenizer(DOCUMENTS, 300)
    endless.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        build(tmp_path, endless)
    with pytest.raises(ShardError, match="no token shards"):
        TokenShards(tmp_path / "nowhere")


def test_a_folder_holds_one_side_of_one_corpus(tmp_path, tokenizer):
    corpus = Corpus("made", "made", "1", lambda: iter(DOCUMENTS), val_percent=20, test_percent=0)
    build_shards(corpus, "train", tokenizer, tmp_path, **OPTIONS)
    other = Corpus("other", "other", "1", lambda: iter(DOCUMENTS), val_percent=20, test_percent=0)
    for wanted, split in ((corpus, "val"), (other, "train")):
        with pytest.raises(ShardError, match=rf"holds made, train; {wanted.name}, {split} needs a folder of its own"):
            build_shards(wanted, split, tokenizer, tmp_path, **OPTIONS)
    assert len(TokenShards(tmp_path)) == sum(1 for _ in corpus.documents("train"))


def test_a_finished_folder_needs_no_lock(tmp_path, tokenizer, monkeypatch):
    build(tmp_path, tokenizer)
    monkeypatch.setattr(shards_module, "locked", None)  # in a read-only cache no lock can be taken
    assert build(tmp_path, tokenizer).written == ()


def test_a_cache_that_is_a_file_is_named(tmp_path, tokenizer):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written .*; set COURSE_CACHE, or pass `cache`"):
        build(tmp_path / "file" / "shards", tokenizer)


def test_what_the_tokenizer_refuses_is_said_and_nothing_is_lost(tmp_path):
    letters = character_tokenizer(DOCUMENTS[:1])
    with pytest.raises(ValueError, match="is not in the vocabulary"):
        build(tmp_path, letters, ["dome", "unit", "Ω"])
    with pytest.raises(ShardError):
        TokenShards(tmp_path)


# -- large ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("giant_line", [False, True], ids=["paragraphs", "one-line"])
def test_a_gigabyte_within_500_megabytes(tmp_path, giant_line):
    """1 GB of made text, tokenised and packed in a process of its own whose memory stays under 500 MB."""
    library = list(load_corpus("python").documents())
    tokenizer = train_fast_tokenizer(library[:100], 4096)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path, size = tmp_path / "text.txt", 0
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        while size < 10**9:
            text = library[random.integers(len(library))]
            start = int(random.integers(len(text)))
            piece = f"{size}\n{text[start:]}{text[:start]}"  # its number makes each piece a text of its own
            piece = piece.replace("\n", " ") if giant_line else f"{piece}\n\n"
            size += file.write(piece)
    build = (
        "import sys; from llm_data.text.corpora import load_corpus; from llm_data.shards.writer import build_shards\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])\n"
        "print(build_shards(load_corpus('text:' + sys.argv[2]), 'train', tokenizer, sys.argv[3]))"
    )
    pack = (
        "import sys; from llm_data.rows.table import build_table; from llm_data.shards.reader import TokenShards\n"
        "build_table(TokenShards(sys.argv[1]), sys.argv[2], 1024, 'best_fit')"
    )
    start = time.monotonic()
    building = peak_memory([sys.executable, "-c", build, tmp_path / "tokenizer", path, tmp_path / "shards"])
    print(f"shards: {time.monotonic() - start:.0f} s, peak {building / 1e6:.0f} MB", flush=True)
    tokens = TokenShards(tmp_path / "shards")
    assert tokens.manifest.text_bytes > 0.8 * 10**9
    assert building < 500e6
    start = time.monotonic()
    # The shards are mapped here, and what is read of them counts as memory until someone else needs it: left out.
    packing = peak_memory([sys.executable, "-c", pack, tmp_path / "shards", tmp_path / "rows"], mapped=False)
    print(f"rows: {time.monotonic() - start:.0f} s, peak {packing / 1e6:.0f} MB without mapped files", flush=True)
    [table] = (tmp_path / "rows").iterdir()
    assert RowTable(table).filled.sum() == tokens.manifest.tokens
    assert packing < 500e6


def peak_memory(command, mapped=True):
    """The largest memory of a process and its children, in bytes; with or without files mapped into it."""
    child, peak = psutil.Popen(command), 0
    while child.poll() is None:
        total = 0
        for process in (child, *_children(child)):
            try:
                memory = process.memory_info()
                total += memory.rss if mapped else memory.rss - memory.shared
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(0.05)
    assert child.returncode == 0
    return peak


def _children(process):
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def test_a_portion_is_small(monkeypatch, tmp_path, tokenizer):
    """The library's own encodings are some hundred bytes a token: no call may get a whole shard."""
    calls = []
    encode = shards_module.encode_documents

    def watched(tokenizer, texts):
        calls.append(sum(map(len, texts)))
        return encode(tokenizer, texts)

    monkeypatch.setattr(shards_module, "encode_documents", watched)
    monkeypatch.setattr(shards_module, "PORTION_CHARACTERS", 500)
    build(tmp_path, tokenizer)
    assert max(calls) < 500 + max(map(len, DOCUMENTS)) and len(calls) > 15
