import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
import zipfile

import llm_data.text.files as text_files
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_data.text.files import CorpusError, read_documents
from llm_data.text.format import refused


def documents_of(tmp_path, data, name="a.txt", errors="strict"):
    path = tmp_path / name
    path.write_bytes(data)
    return list(read_documents(path, errors))


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "hello")
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"hello"), r"compressed \(gzip\); unpack it"),
        (bz2.compress(b"hello"), r"compressed \(bzip2\)"),
        (bz2.compress(b""), r"compressed \(bzip2\)"),
        (lzma.compress(b"hello"), r"compressed \(xz\)"),
        (lzma.compress(b"hello", lzma.FORMAT_ALONE), r"compressed \(lzma\)"),
        (b"\x28\xb5\x2f\xfd\x04\x00", r"compressed \(zstd\)"),
        (zipped(), r"compressed \(zip"),
        (tarred(), r"archive \(tar\)"),
        (b"%PDF-1.7\n1 0 obj", "a PDF, not text"),
        (b"\x89PNG\r\n\x1a\n\x00", "a picture"),
        (b"PAR1\x15\x04\x15", "a parquet file"),
        (b"\x00" * 100, "not UTF-8"),
    ],
    # A compressed file holds the time: as a name of a test each worker would have another one.
    ids=lambda value: "data" if isinstance(value, bytes) else value,
)
@pytest.mark.parametrize(("name", "errors"), [("a.txt", "strict"), ("a.jsonl", "replace")])
def test_what_is_no_text_is_refused_by_its_name(tmp_path, data, message, name, errors):
    with pytest.raises(CorpusError, match=message):
        documents_of(tmp_path, data, name, errors)


TEXTS = ["hello\n\nworld", "Привет, мир. Ещё строка\n", "Γειά σου Κόσμε\n", '{"text": "a"}\n', "naïve café, «quoted»"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_wide_encodings_are_refused_with_the_way_to_convert_them(tmp_path, text, encoding):
    data = text.encode(encoding)
    with pytest.raises(CorpusError, match=r"not UTF-8") as caught:
        documents_of(tmp_path, data)
    if "iconv" in str(caught.value):  # else two bytes of it were no UTF-8
        named = str(caught.value).split("iconv -f ")[1].split(" ")[0]
        assert data.decode(named).removeprefix("\ufeff") == text


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\f"), max_size=60))
def test_no_text_without_control_characters_is_refused(text):
    reason = refused(text.encode())
    assert reason is None or text.startswith("%PDF-")


def test_nuls_and_letters_of_a_format_are_text(tmp_path):
    for text in ("a\0b\n\nc", "a\0", "BZh", "PAR1 of the story", "RIFF", "GIF89 is a format", "]\0 [", "PK", "Rar!"):
        assert documents_of(tmp_path, text.encode()) == text.split("\n\n")


@pytest.mark.parametrize("blank", ["", " \t", "\xa0", "\f", "\v", "\x85", "\u2003", "\u2028", "\u3000", "\x1c"])
def test_white_space_of_any_kind_makes_a_blank_line(tmp_path, blank):
    assert documents_of(tmp_path, f"one\n{blank}\ntwo\n".encode()) == ["one", "two\n"]


def test_a_zero_width_space_is_a_character(tmp_path):
    assert documents_of(tmp_path, "one\n\u200b\ntwo".encode()) == ["one\n\u200b\ntwo"]


# -- lines of JSON -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
        ('{"text": "a", "x": ' + '{"y": ' * 100_000, "nested too deep"),
        ('{"text": "a", "x": ' + "1" * 5000 + "}", "a number of thousands of digits"),
        ('{"text": NaN}', "NaN is not JSON"),
        ('{"text": "a", "x": [-Infinity]}', "-Infinity is not JSON"),
        ('{"text": "a", "text": "b"}', "the key 'text' stands in it twice"),
        ('{"text": "a", "x": {"y": 1, "y": 1}}', "the key 'y' stands in it twice"),
        ('[{"text": "a"}]', "this is an array"),
        ('"text"', "this is a string"),
        ("null", "this is a null"),
        ("{}", "this one is empty"),
        ('{"content": "a"}', "this one has 'content'"),
        ('{"text": ["a"]}', 'under "text" it has a list'),
        ('{"text": "a"', "this is none"),
        ('{"text": "a"} {"text": "b"}', "Extra data"),
        ("{'text': 'a'}", "this is none"),
    ],
)
def test_a_line_that_is_no_object_with_a_text_is_named(tmp_path, line, message):
    with pytest.raises(CorpusError, match=r'a\.jsonl, line 3: expected a JSON object with a string under "text"') as at:
        documents_of(tmp_path, f'{{"text": "fine"}}\n \n{line}\n'.encode(), "a.jsonl")
    assert message in str(at.value) and str(at.value).isprintable()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=8), st.integers(1, 9))
def test_lines_do_not_depend_on_blocks(tmp_path_factory, texts, size):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_text("\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", size)
        assert list(read_documents(path)) == [text for text in texts if not text.isspace()]


def test_memory_does_not_grow_with_a_file_of_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", 1 << 14)
    peaks = []
    for number in (200, 1600):
        path = tmp_path / f"{number}.jsonl"
        path.write_text((json.dumps({"text": "word " * 500}) + "\n") * number)
        tracemalloc.start()
        assert sum(1 for _ in read_documents(path)) == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_LINE", 1 << 20)
    line = json.dumps({"text": "x" * (1 << 22)})
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 2: longer than 1,048,576 characters; cut it into several"):
        documents_of(tmp_path, f'{{"text": "a"}}\n{line}'.encode(), "a.jsonl")
