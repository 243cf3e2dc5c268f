"""The store: what is in it, what a kill leaves, and which files and questions it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest
import torch
from llm_rag.folder.chunks import Chunking
from llm_rag.folder.documents import Document
from llm_rag.search.bm25 import BM25, words_of
from llm_rag.search.exact import ExactIndex
from llm_rag.store.indexing import index
from llm_rag.store.schema import StoreError
from llm_rag.store.store import Store
from word_encoder import WordEncoder

CHILD = str(Path(__file__).with_name("word_encoder.py"))


def document(path, text):
    return Document(path, text, f"sha of {text}")


def content(store):
    """All that is in it, whatever the ids are."""
    rows = store.connection.execute(
        "SELECT path, sha256, start, stop, chunks.text, vector, (SELECT text FROM words WHERE rowid = chunks.id) "
        "FROM documents LEFT JOIN chunks ON document = documents.id LEFT JOIN vectors ON chunk = chunks.id "
        "ORDER BY path, start"
    )
    return list(rows)


def test_what_is_put_in_is_found_changed_and_taken_out(tmp_path):
    with Store(tmp_path / "s.db", WordEncoder(), write=True) as store:
        assert store.search("anything", 3) == [] and len(store) == 0
        store.add(document("tea", "Green tea is brewed at 80 degrees."))
        store.add(document("bees", "A hive has one queen."))
        for method in ("words", "vectors", "hybrid"):
            (best, *_) = store.search("how is green tea brewed", 5, method)
            assert best.chunk.document == "tea" and best.chunk.text.startswith("Green tea")
        store.add(document("tea", "Coffee."))
        assert [each.chunk.document for each in store.search_words("green tea queen", 5)] == ["bees"]
        assert store.remove("bees") and not store.remove("bees")
        assert store.documents() == {"tea": "sha of Coffee."} and len(store) == 1
        store.move("tea", "cup")
        assert [each.chunk.document for each in store.search_vectors("coffee", 9)] == ["cup"]
        with pytest.raises(StoreError, match="nowhere cannot become"):
            store.move("nowhere", "x")
        store.check()
    with Store(tmp_path / "s.db") as store:  # without an encoder: words alone
        assert store.search_words("COFFEE", 1)[0].chunk.document == "cup"
        with pytest.raises(StoreError, match="was opened without an encoder; give words-16"):
            store.search_vectors("coffee", 1)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["s.db"]


def test_its_rankings_are_those_of_the_indexes_by_hand(tmp_path):
    encoder = WordEncoder()
    texts = [f"{a} {b} words {c} of number {a}{c}" for a in ("red", "blue", "green") for b in "xyz" for c in "pqr"]
    with Store(tmp_path / "s.db", encoder, write=True) as store:
        for place, text in enumerate(texts):
            store.add(document(f"{place:02}", text))
        exact = ExactIndex(encoder.dim, "cosine")
        exact.add(encoder.encode(texts))
        values, ids = exact.search(encoder.encode(["blue y words"]), 27)
        found = store.search_vectors("blue y words", 27)
        assert [each.score for each in found] == pytest.approx(values[0].tolist(), abs=1e-6)
        assert {int(each.chunk.document) for each in found[:9]} == set(ids[0, :9].tolist())
        hits = BM25([words_of(text) for text in texts], k1=1.2, idf="fts5").search(["blue", "y"], 27)
        found = store.search_words("blue: y?", 27)
        assert [(int(each.chunk.document), each.score) for each in found] == [
            (hit.id, pytest.approx(hit.score, abs=1e-9)) for hit in hits
        ]


@pytest.mark.parametrize(
    "question",
    ["", "   ", '"', "* NEAR( ^ :", "the of and", 'tea" OR 1=1 --', "tea AND NOT", "NEAR(tea, bees)", "text:tea", "'",
     "{a b}:", "\0", "漢字", "a" * 5000, "tea " * 5000, "\udcff".encode("utf-8", "replace").decode(), "-tea +bees"],
)  # fmt: skip
def test_a_question_is_words_and_never_a_query_language(question, tmp_path):
    with Store(tmp_path / "s.db", WordEncoder(), write=True) as store:
        store.add(document("tea", "Green tea."))
        store.add(document("bees", "Near bees and not tea, or."))
        assert {each.chunk.document for each in store.search_words(question, 5)} <= {"tea", "bees"}
        assert len(store.search(question, 100, "hybrid")) == 2  # k larger than what is there
        if "tea" in question.split() or ('"' in question and "tea" in question):
            assert "tea" in {each.chunk.document for each in store.search_words(question, 5)}


def test_vectors_that_cannot_be_kept(tmp_path):
    encoder = WordEncoder()
    with Store(tmp_path / "s.db", encoder, write=True) as store:
        store.add(document("a", "fine text"))
        before = content(store)
        for bad, words in ((torch.nan, "is not finite"), (0.0, "is zero and has no cosine")):
            encoder.encode = lambda texts, bad=bad: torch.full((len(texts), 16), bad)
            for call in (lambda: store.add(document("a", "new")), lambda: store.search_vectors("new", 1)):
                with pytest.raises(ValueError, match=words):
                    call()
        assert content(store) == before
        for wrong, call in (
            ("k=0", lambda: store.search_words("x", 0)), ("k=0", lambda: store.hybrid("", 0)),
            ("surrogate", lambda: store.search_vectors("\ud800", 1)),
            ("k=4097 is above", lambda: store.search_vectors("x", 4097)),
            ("method='x'", lambda: store.search("x", 1, "x")),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=wrong):
                call()


def test_a_document_that_fails_halfway_leaves_nothing(tmp_path, monkeypatch):
    with Store(tmp_path / "s.db", WordEncoder(), Chunking(16, 0), write=True) as store:
        store.add(document("a", "one two three four five six"))
        before = content(store)
        whole = store._vectors
        monkeypatch.setattr(store, "_vectors", lambda texts: whole(texts)[:-1])
        with pytest.raises(ValueError, match="zip"):
            store.add(document("a", "seven eight nine ten eleven twelve"))
        assert content(store) == before
        store.check()


def test_only_what_changed_is_encoded(folder, tmp_path):
    encoder = WordEncoder()
    with Store(folder / "own.db", encoder, write=True) as store:  # it may lie in the folder itself
        first = index(folder, store)
        assert len(first.added) == 4 and first.encoded == encoder.texts == len(store) and not first.skipped
        encoder.texts = 0
        assert len(index(folder, store).unchanged) == 4 and encoder.texts == 0
        (folder / "tea.txt").write_text("Tea, differently.", "utf-8")
        (folder / "deep/er/bees.txt").rename(folder / "moved.txt")
        (folder / "bread.md").unlink()
        (folder / "new.txt").write_text("New.", "utf-8")
        (folder / "bad.txt").write_bytes(b"\xff\xfe\0")
        (folder / "code/sort.py").rename(folder / "code/sort.txt")  # cut by another rule: encoded again
        report = index(folder, store)
        assert (report.changed, report.moved, report.removed) == (
            ["tea.txt"],
            ["moved.txt"],
            ["bread.md", "code/sort.py"],
        )
        assert report.added == ["code/sort.txt", "new.txt"] and [each.path for each in report.skipped] == ["bad.txt"]
        assert encoder.texts == report.encoded == 3
        assert "1 changed, 1 moved, 2 removed" in str(report)
        store.check()
        after = content(store)
    with Store(tmp_path / "fresh.db", WordEncoder(), write=True) as fresh:
        index(folder, fresh)
        assert [row for row in content(fresh) if row[0] != "own.db"] == after


def test_swapped_names_and_a_document_that_becomes_none(tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    (root / "a.txt").write_text("first text")
    (root / "b.txt").write_text("second text")
    with Store(tmp_path / "s.db", WordEncoder(), write=True) as store:
        index(root, store)
        (root / "a.txt").rename(root / "c")
        (root / "b.txt").rename(root / "a.txt")
        (root / "c").rename(root / "b.txt")
        assert index(root, store).changed == ["a.txt", "b.txt"]
        assert [each.text for each in store.chunks()] == ["second text", "first text"]
        (root / "a.txt").write_bytes(b"\0")
        report = index(root, store)
        assert report.removed == ["a.txt"] and [each.path for each in report.skipped] == ["a.txt"]


def test_killed_at_any_place_each_document_is_whole_or_absent(tmp_path):
    root, killed, whole = tmp_path / "d", tmp_path / "killed.db", tmp_path / "whole.db"
    root.mkdir()
    for number in range(40):
        (root / f"{number:02}.txt").write_text(f"Document {number}. " * (number * 5 + 1))
    with Store(whole, WordEncoder(), write=True) as store:
        index(root, store)
        expected = content(store)
    begun = set()
    for documents in (2, 9):
        command = [sys.executable, CHILD, str(root), str(killed), "0.01"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for _ in range(documents + 1):
                child.stdout.readline()
            time.sleep(0.012 * documents / 9)  # inside of what follows, now here and now there
            child.kill()
        with Store(killed, WordEncoder()) as store:
            assert store.connection.execute("PRAGMA integrity_check").get == "ok"
            there = content(store)
            names = {row[0] for row in there}
            assert there == [row for row in expected if row[0] in names] and len(names) < 40
            begun.add(len(names))
    assert max(begun) > 0
    with Store(killed, WordEncoder(), write=True) as store:
        report = index(root, store)
        assert len(report.unchanged) == max(begun) and content(store) == expected
        store.check()


def test_two_writers_and_a_reader_beside_one(folder, tmp_path):
    path = tmp_path / "s.db"
    command = [sys.executable, CHILD, str(folder), str(path), "30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            child.stdout.readline()
            begun = time.monotonic()
            with pytest.raises(StoreError, match="is being written by another process; try again"):
                Store(path, WordEncoder(), write=True)
            assert time.monotonic() - begun < 5  # told, and not waited for
            with Store(path, WordEncoder()) as store:
                assert store.documents() == {}
        finally:
            child.kill()
    with Store(path, WordEncoder(), write=True) as store:  # the lock ended with its process
        assert len(index(folder, store).added) == 4


def test_a_lock_inside_the_database_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_rag.store.schema.WAIT_MS", 50)
    with Store(tmp_path / "s.db", WordEncoder(), write=True) as store:
        other = apsw.Connection(str(tmp_path / "s.db"))
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="is being written by another process"):
            store.add(document("a", "text"))
        other.close()


def test_a_store_made_with_others_is_refused(tmp_path):
    path = tmp_path / "s.db"
    Store(path, WordEncoder(), Chunking(100, 10), write=True).close()
    for encoder, chunking, words in (
        (WordEncoder(name="others"), None, "made with encoder=words-16, and encoder=others is asked for"),
        (WordEncoder(dim=8), None, "made with dim=16, and dim=8"),
        (WordEncoder(), Chunking(200, 10), r"made with chunking=Chunking\(size=100"),
    ):
        with pytest.raises(StoreError, match=words):
            Store(path, encoder, chunking, write=True)
    with Store(path, WordEncoder(), write=True) as store:  # the sizes of the store that is there
        assert store.settings.chunking == Chunking(100, 10)


def test_files_that_are_no_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, other, later = tmp_path / "text.db", tmp_path / "other.db", tmp_path / "later.db"
    text.write_text("this is a text, and longer than a header of SQLite would be")
    apsw.Connection(str(other)).execute("CREATE TABLE theirs (x)")
    Store(later, WordEncoder(), write=True).close()
    apsw.Connection(str(later)).pragma("user_version", 99)
    (tmp_path / "empty.db").touch()
    for path, write, words in (
        (text, True, "is no store"), (text, False, "is no store"), (other, True, "a database of another program"),
        (later, True, "has version 99"), (tmp_path, True, "is a folder"),
        (tmp_path / "no/s.db", True, "its folder is not"), (tmp_path / "empty.db", False, "no store"),
        (tmp_path / "none.db", False, "no such store; make it with `rag index"),
        (text / "s.db", True, "its folder is not there"),
    ):  # fmt: skip
        with pytest.raises(StoreError, match=words) as said:
            Store(path, WordEncoder(), write=write)
        assert "\n" not in str(said.value)
    Store(tmp_path / "empty.db", WordEncoder(), write=True).close()  # a kill before the first page leaves such a file
    Store(":memory:", WordEncoder(), write=True).close()
    assert Path(":memory:").is_file()  # a file of that name, and no database that is gone at the end
    with pytest.raises(StoreError, match="a new store needs an encoder"):
        Store(tmp_path / "new.db", write=True)


def test_a_damaged_store_is_one_line(folder, tmp_path):
    path = tmp_path / "s.db"
    with Store(path, WordEncoder(), Chunking(16, 0), write=True) as store:
        index(folder, store)
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 2000] = b"\xa5" * 2000
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"), Store(path, WordEncoder()) as store:
        store.documents()
        store.search("tea", 3)
        store.check()


def test_a_store_is_one_file_that_can_be_copied_and_put_on_a_read_only_place(folder, tmp_path):
    with Store(tmp_path / "s.db", WordEncoder(), write=True) as store:
        index(folder, store)
        expected = content(store)
    copied = tmp_path / "ünï dir" / "copy of it.db"
    copied.parent.mkdir()
    shutil.copy(tmp_path / "s.db", copied)
    copied.chmod(0o444)
    copied.parent.chmod(0o555)
    try:
        with Store(copied, WordEncoder()) as store:
            assert (
                content(store) == expected
                and store.search("queen of a hive", 1, "words")[0].chunk.document == "deep/er/bees.txt"
            )
    finally:
        copied.parent.chmod(0o755)
