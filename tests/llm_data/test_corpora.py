import ast
import json
import re
import tracemalloc

import llm_data.text.corpora as corpora
import llm_data.text.files as text_files
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_data.text.corpora import SPLITS, Corpus, CorpusError, is_local, load_corpus
from llm_data.text.files import cut_long, find_files, read_documents, split_text
from llm_data.text.python_source import MAX_FUNCTION, docstrings_of, functions_of


@pytest.fixture
def no_local_copies(monkeypatch):
    monkeypatch.delenv("COURSE_DATA", raising=False)


def local(name):
    return pytest.mark.skipif(
        not is_local(name), reason=f"no copy of {name} below COURSE_DATA (README of Module 2 says how)"
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- the split -----------------------------------------------------------------------------------------------------


def made(documents, **shares):
    return Corpus("made", "made", "", lambda: iter(documents), **shares)


def test_the_split_is_fixed_for_ever():
    corpus = made([])
    words = ["a", "tree", "falls", "in", "the", "wood", "and", "nobody", "hears", "it", "fall", "down", "1", "2", "3"]
    # Recorded once: a change here moves documents of every reader between training and test.
    assert "".join(corpus.side(f"{word} {number}")[1] for number in range(8) for word in words) == (
        "rrrrrrrrrrrrrrrerrrrrrrrrererrrrrrrrrrrrrrrerarrrrerrrrrrrrrrrrrrrrerrrrrrrrrrrrrrrrreerrrrarrrarrrrrrrerrrrrrrrrrrrrrrr"
    )


@given(st.lists(st.text(min_size=1), unique=True), st.lists(st.text(min_size=1)))
def test_adding_documents_moves_none(documents, more):
    corpus, larger = made(documents, val_percent=30, test_percent=30), made([*more, *documents])
    sides = {document: side for side in SPLITS for document in documents if corpus.side(document) == side}
    assert len(sides) == len(documents)
    larger = made([*more, *documents], val_percent=30, test_percent=30)
    assert all(larger.side(document) == side for document, side in sides.items())


def test_shares_are_met_and_nested():
    documents = [f"document {number}" for number in range(4000)]
    narrow, wide = made(documents), made(documents, val_percent=20, test_percent=5)
    for side in ("val", "test"):
        found = sum(1 for _ in narrow.documents(side))
        assert abs(found - 200) < 5 * (4000 * 0.05 * 0.95) ** 0.5  # five standard deviations of a binomial count
    assert set(narrow.documents("val")) < set(wide.documents("val"))
    assert [*narrow.documents()] == documents
    assert sum(1 for side in SPLITS for _ in narrow.documents(side)) == 4000


def test_copies_of_a_text_are_on_one_side():
    documents = [f"document {number % 50}" for number in range(200)]
    corpus = made(documents, val_percent=30)
    assert not set(corpus.documents("train")) & set(corpus.documents("val"))


@pytest.mark.parametrize(
    ("documents", "split", "message"),
    [
        (["one"], "val", "none of its 1 documents falls into 'val'; raise val_percent, or add documents"),
        ([], "train", "holds no text"),
        (["one"], "dev", "split 'dev': choose one of train, val, test"),
    ],
)
def test_an_empty_split_is_refused_by_name(documents, split, message):
    with pytest.raises(CorpusError, match=message):
        list(Corpus.documents.__wrapped__(made(documents), split))


@pytest.mark.parametrize(
    "shares", [{"val_percent": -1}, {"test_percent": 100}, {"val_percent": 60, "test_percent": 40}]
)
def test_impossible_shares(shares):
    with pytest.raises(CorpusError, match=r"lies in \[0, 100\)|leave nothing to train on"):
        made([], **shares)


# -- text files ----------------------------------------------------------------------------------------------------


@given(st.lists(st.text(alphabet="ab \n\r<|>é€😀", max_size=40)), st.integers(1, 7))
def test_blocks_do_not_matter(tmp_path_factory, parts, size):
    path = write(tmp_path_factory.mktemp("blocks") / "a.txt", "\n\n".join(parts))
    text = path.read_bytes().decode().replace("\r\n", "\n").replace("\r", "\n")
    expected = [part for part in re.split(r"\n[ \t]*\n", text) if part and not part.isspace()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", size)
        assert list(read_documents(path)) == expected
        assert (
            "\n\n".join(split_text([text[start : start + size] for start in range(0, len(text), size)], "\n\n")) == text
        )


def test_spaces_do_not_make_a_line_full(tmp_path):
    assert list(read_documents(write(tmp_path / "a.txt", "one\n \t\ntwo\nstill two\n\nthree"))) == [
        "one", "two\nstill two", "three",
    ]  # fmt: skip


def test_json_is_not_text(tmp_path):
    path = write(tmp_path / "a.json", "{}")
    with pytest.raises(CorpusError, match=r"a \.json file is not text; give one object a line in a \.jsonl"):
        list(load_corpus(f"text:{path}").documents())


def test_half_a_character_in_json_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n{"text": "\\ud800"}')
    with pytest.raises(CorpusError, match=r"line 2: .* half a surrogate pair"):
        list(read_documents(path))


def test_an_empty_text_is_no_document():
    assert list(made(["", "one", ""]).documents()) == ["one"]
    with pytest.raises(CorpusError, match="holds no text"):
        list(made(["", ""]).documents())


def test_a_path_is_no_name(tmp_path):
    with pytest.raises(CorpusError, match="for files write 'text:"):
        load_corpus.__wrapped__(tmp_path)


def test_end_of_text_separates_where_a_file_has_it(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\nstill one<|endoftext|>two<|endoftext|>\n")
    assert list(read_documents(path)) == ["one\n\nstill one", "two"]


@pytest.mark.parametrize("before", [text_files.BLOCK - 20, text_files.BLOCK - 3, text_files.BLOCK])
def test_an_end_of_text_across_two_blocks_is_seen(tmp_path, before):
    path = write(tmp_path / "a.txt", "a" * before + "<|endoftext|>two\n\nstill two")
    assert list(read_documents(path))[-1] == "two\n\nstill two"


def test_json_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "one\\n\\ntwo"}\n\n{"text": "three", "id": 3}')
    assert list(read_documents(path)) == ["one\n\ntwo", "three"]
    for bad in ('{"text": 3}', '{"body": "x"}', "{", "[1]"):
        with pytest.raises(CorpusError, match=r'a.jsonl, line 2: expected a JSON object with a string under "text"'):
            list(read_documents(write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{bad}\n')))


@pytest.mark.parametrize("before", [0, 5, 70_000, text_files.BLOCK - 1, text_files.BLOCK])
def test_undecodable_bytes_are_named_with_their_place(tmp_path, before):
    path = write(tmp_path / "a.txt", b"a" * before + b"\xff" + b"b" * 10)
    with pytest.raises(CorpusError, match=rf"a\.txt: byte 0xff at offset {before} is not UTF-8; convert"):
        list(read_documents(path))
    assert "".join(read_documents(path, "replace")) == "a" * before + "\ufffd" + "b" * 10


def test_a_character_cut_off_at_the_end_of_the_file(tmp_path):
    path = write(tmp_path / "a.txt", "ab€".encode()[:-1])
    with pytest.raises(CorpusError, match="offset 2 "):
        list(read_documents(path))


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert list(read_documents(write(tmp_path / "a.txt", b"\xef\xbb\xbfone"))) == ["one"]


@pytest.mark.parametrize("unit", ["x", "word ", "line\n"])
def test_a_giant_document_is_cut_without_loss(tmp_path, unit):
    text = unit * (600_000 // len(unit))
    documents = list(read_documents(write(tmp_path / "a.txt", text)))
    assert "".join(documents) == text
    assert max(map(len, documents)) <= text_files.MAX_DOCUMENT
    assert len(documents) == -(-len(text) // (text_files.MAX_DOCUMENT // len(unit) * len(unit)))
    assert all(document.endswith(unit) for document in documents)
    assert "".join(cut_long(text)) == text


def test_memory_does_not_grow_with_a_line(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(b"x" * 2**20)
    tracemalloc.start()
    total = sum(len(document) for document in read_documents(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 64 * 2**20
    assert peak < 8 * 2**20


def test_files_of_a_path(tmp_path, monkeypatch):
    write(tmp_path / "notes" / "b.md", "b")
    write(tmp_path / "notes" / "deep" / "a.txt", "a")
    write(tmp_path / "notes" / "c.tex", "c")
    names = lambda path: [file.name for file in find_files(path)]  # noqa: E731
    assert names(tmp_path / "notes") == ["b.md", "a.txt"]
    assert names(f"{tmp_path}/notes/**/*.t*") == ["c.tex", "a.txt"]
    assert names(tmp_path / "notes" / "c.tex") == ["c.tex"]
    monkeypatch.chdir(tmp_path)
    assert set(load_corpus("text:notes").documents()) == {"a", "b"}
    with pytest.raises(CorpusError, match="no such file or folder"):
        find_files("nothing-here")
    with pytest.raises(CorpusError, match="text: names no file"):
        load_corpus("text:")
    write(tmp_path / "pictures" / "a.png", b"\x89")
    with pytest.raises(CorpusError, match=r"no .*\.txt file below this folder \(it has \.png\)"):
        load_corpus("text:pictures")


def test_an_empty_file_gives_nothing_and_alone_is_refused(tmp_path):
    write(tmp_path / "a.txt", "")
    write(tmp_path / "b.txt", "text")
    assert list(load_corpus(f"text:{tmp_path}").documents()) == ["text"]
    with pytest.raises(CorpusError, match="1 file holds no text"):
        list(load_corpus(f"text:{tmp_path / 'a.txt'}").documents())


def test_the_fingerprint_follows_the_files(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    before = load_corpus(f"text:{path}").fingerprint
    assert load_corpus(f"text:{path}").fingerprint == before
    write(path, "other")
    assert load_corpus(f"text:{path}").fingerprint != before


# -- named corpora -------------------------------------------------------------------------------------------------


def test_python_is_everywhere(no_local_copies):
    documents = list(load_corpus("python").documents())
    assert len(documents) > 300 and sum(map(len, documents)) > 5_000_000
    assert is_local("python") and is_local("python-functions") and not is_local("shakespeare")


def test_functions_parse_are_distinct_and_bare():
    documents = list(load_corpus("python-functions").documents())
    assert len(documents) > 8000 and len(set(documents)) == len(documents)
    for text in documents[::7]:
        [function] = ast.parse(text).body
        assert isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and not function.decorator_list
        assert all(
            ast.get_docstring(node) is None
            for node in ast.walk(function)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        )
        assert len(text) <= MAX_FUNCTION and ast.unparse(function) == text


def test_docstrings():
    assert is_local("python-docstrings")
    documents = list(load_corpus("python-docstrings").documents())
    assert len(documents) == len(set(documents)) > 2000
    assert all(len(text) >= 80 and text == text.strip() for text in documents)
    source = '"""One."""\nclass A:\n    """Two\n\n      three."""\n    def f(s):\n        "four"\n        return "five"'
    assert list(docstrings_of(source, min_length=1)) == ["One.", "Two\n\nthree.", "four"]
    assert list(docstrings_of(source, min_length=5)) == ["Two\n\nthree."]


def test_functions_by_hand():
    source = '@cache\ndef f(x):\n    """Doc."""\n\nclass A:\n    def g(self):  # note\n        return   1\n'
    assert list(functions_of(source)) == ["def f(x):\n    pass", "def g(self):\n    return 1"]
    assert list(functions_of(source, max_length=20)) == ["def f(x):\n    pass"]


@local("shakespeare")
def test_shakespeare_is_whole():
    documents = list(load_corpus("shakespeare").documents())
    text = "\n\n".join(documents)
    assert len(text) == 1_115_394 and len(set(text)) == 65
    assert documents[0].startswith("First Citizen:\n")


@local("wikitext-2")
def test_an_article_is_a_document():
    documents = list(load_corpus("wikitext-2").documents())
    assert len(documents) > 100
    titles = [document.split("\n")[0] for document in documents]
    assert sum(title.startswith("= ") and title.endswith(" =") for title in titles) > 0.97 * len(titles)
    assert all("\n= " not in document.replace("\n= =", "") for document in documents)


ROWS = [
    "",
    " = First = \n",
    "",
    " Text of it . \n",
    " = = Part = = \n",
    " More . \n",
    "",
    " = Second = \n",
    " End . \n",
]
ARTICLES = ["= First =\nText of it .\n= = Part = =\nMore .", "= Second =\nEnd ."]


def test_wikitext_from_the_hub_and_from_a_copy_are_the_same(tmp_path, monkeypatch, no_local_copies):
    asked = {}

    def load_dataset(*arguments, **options):
        asked.update(options, arguments=arguments)
        return [{"text": row} for row in ROWS]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert list(load_corpus("wikitext-103").documents()) == ARTICLES
    assert asked["arguments"] == ("Salesforce/wikitext", "wikitext-103-v1")
    assert len(asked["revision"]) == 40
    write(tmp_path / "wikitext-103" / "train.txt", "".join(row or " \n" for row in ROWS))
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    monkeypatch.setattr("datasets.load_dataset", None)
    assert list(load_corpus("wikitext-103").documents()) == ARTICLES


def test_without_network_or_copy_the_error_names_three_ways_out(monkeypatch, no_local_copies):
    def unreachable(*_, **__):
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    for name in ("shakespeare", "wikitext-2", "wikitext-103"):
        with pytest.raises(
            CorpusError, match=r"connect to a network once; put a copy .* COURSE_DATA .*'python'"
        ) as error:
            load_corpus(name)
        assert "\n" not in str(error.value)


def test_a_folder_of_copies_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "absent"))
    for call in (load_corpus, is_local):
        with pytest.raises(CorpusError, match=r"COURSE_DATA=.*absent is no folder"):
            call("shakespeare")


def test_a_changed_copy_is_refused(tmp_path, monkeypatch):
    for name, part in (("shakespeare", "tinyshakespeare/input.txt"), ("wikitext-2", "wikitext-2/valid.txt")):
        write(tmp_path / part, "something else")
        monkeypatch.setenv("COURSE_DATA", str(tmp_path))
        with pytest.raises(CorpusError, match="is not the pinned text"):
            load_corpus(name)


def test_a_changed_download_is_refused(monkeypatch, no_local_copies):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"text": "To be\n\nor not"}])
    with pytest.raises(CorpusError, match="has changed"):
        load_corpus("shakespeare")
    monkeypatch.setitem(
        corpora.SHA256, "tinyshakespeare/input.txt", "23ed8a8e0b5b19fb8b7c7e5c32b2ba95c0cf8ff5dbbbd2f2fbc27cf3a6d9a5c9"
    )
    with pytest.raises(CorpusError, match="has changed"):
        load_corpus("shakespeare")


@pytest.mark.parametrize("name", ["wikitext", "", "Python", "shakespear"])
def test_an_unknown_name(name):
    with pytest.raises(CorpusError, match=r"is unknown; choose one of python, .* or text:PATH"):
        load_corpus(name)


def test_json_is_only_a_container(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "x" * 300_000}))
    assert "".join(load_corpus(f"text:{path}").documents()) == "x" * 300_000
