"""Which files are documents, why others are not, and that cutting loses nothing."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_rag.folder.chunks import Chunking, chunks_of
from llm_rag.folder.documents import Document, LeftOut, read_folder


def read(folder, **options):
    found = list(read_folder(folder, **options))
    documents = {each.path: each for each in found if isinstance(each, Document)}
    return documents, {each.path: each.reason for each in found if isinstance(each, LeftOut)}


def test_every_file_is_a_document_or_is_named_with_its_reason(folder):
    outside = folder.parent / "secret.txt"
    outside.write_text("secret", "utf-8")
    for name, data in {
        "windows.txt": b"\xef\xbb\xbfone\r\ntwo\rthree", "nothing.txt": b"", "blank.txt": b"\xef\xbb\xbf \n\t",
        "nul.txt": b"text\0text", "latin.txt": "häuser".encode("latin-1"), "picture.png": b"\x89PNG\r\n\x1a\n....",
        "wide.txt": "hello there".encode("utf-16"), "large.txt": b"x" * 2001,
        "copy.md": (folder / "tea.txt").read_bytes(),
        "ünï 漢字.txt": "schön".encode(), ".hidden": b"hidden", "line\nbreak.txt": b"fine text",
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
    (folder / "leaves.txt").symlink_to(outside)
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "linked").symlink_to(folder / "code")
    os.mkfifo(folder / "pipe")
    with open(os.fsencode(folder) + b"/\xff.txt", "wb") as file:
        file.write(b"a name of no encoding")
    documents, left = read(folder, max_bytes=2000)
    assert documents["windows.txt"].text == "one\ntwo\nthree" and documents["ünï 漢字.txt"].text == "schön"
    assert set(documents) == {"bread.md", "code/sort.py", "copy.md", "deep/er/bees.txt", "windows.txt", "ünï 漢字.txt"}
    for name, words in {
        "nothing.txt": "empty", "blank.txt": "empty", "nul.txt": "NUL", "latin.txt": "byte 1 is not UTF-8",
        "picture.png": "a picture (PNG)", "wide.txt": "UTF-16", "large.txt": "2,001 bytes, more than 2,000",
        "tea.txt": "the same as copy.md", "leaves.txt": "leaves the folder", "loop.txt": "cannot be read",
        "linked": "a link to a folder", "pipe": "no regular file", "line\\nbreak.txt": "rename it",
        "\\udcff.txt": "rename it",
    }.items():  # fmt: skip
        assert words in left.pop(name), name
    assert not left


def test_a_file_of_200_megabytes_is_not_read(folder):
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(200 << 20)  # it takes no room on the disk
    documents, left = read(folder)
    assert left == {"huge.txt": "209,715,200 bytes, more than 4,194,304"} and len(documents) == 4


def test_folders_that_are_none_and_what_is_excluded(folder):
    for place, words in ((folder / "nowhere", "no such folder"), (folder / "tea.txt", "a file")):
        with pytest.raises(ValueError, match=words):
            list(read_folder(place))
    with pytest.raises(ValueError, match="max_bytes=0 must be at least 1"):
        list(read_folder(folder, max_bytes=0))
    assert "tea.txt" not in read(folder, exclude=[folder / "tea.txt"])[0]


SHAPES = st.sampled_from(["word ", "Sentence. ", "\n", "\n\n", "\t", "x" * 50, "é", "漢", "def f():\n", "  \n \n", "!"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(SHAPES, max_size=60).map("".join),
    st.integers(16, 80),
    st.data(),
    st.sampled_from(["a.txt", "a.py"]),
)
def test_every_character_is_in_a_passage_at_its_place(text, size, data, name):
    chunking = Chunking(size, data.draw(st.integers(0, size // 2)))
    seen = [False] * len(text)
    last = -1
    for chunk in chunks_of(text, name, chunking):
        assert chunk.text == text[chunk.start : chunk.stop] and 0 < len(chunk.text) <= size
        assert chunk.start > last and not chunk.text.isspace()
        last = chunk.start
        seen[chunk.start : chunk.stop] = [True] * (chunk.stop - chunk.start)
    assert all(was or letter.isspace() for was, letter in zip(seen, text, strict=True))


def test_passages_end_where_a_thought_does():
    text = "First paragraph here. It goes on.\n\nSecond paragraph here. It goes on too.\n\nThe third one."
    assert [each.text for each in chunks_of(text, "a.md", Chunking(50, 0))] == [
        "First paragraph here. It goes on.\n\n", "Second paragraph here. It goes on too.\n\n", "The third one.",
    ]  # fmt: skip
    sentences = "One sentence is here. Another sentence is there. A third is nowhere at all."
    first, _ = chunks_of(sentences, "a.md", Chunking(50, 0))
    assert first.text == "One sentence is here. Another sentence is there. "
    overlapping = [each.text for each in chunks_of(sentences, "a.md", Chunking(60, 28))]
    assert overlapping[1].startswith("Another sentence is there. A third")
    code = "import os\n\n\ndef one():\n    a = 1\n    return a\n\n\ndef two():\n    b = 2\n\n    return b\n"
    assert [each.text.strip()[:8] for each in chunks_of(code, "a.py", Chunking(64, 0))] == ["import o", "def two("]
    assert [each.stop for each in chunks_of("y" * 100, "a.txt", Chunking(40, 10))] == [40, 70, 100]


@pytest.mark.parametrize(
    ("size", "overlap", "words"), [(15, 0, "size=15 must be at least 16"), (100, 51, "from 0 to 50")]
)
def test_sizes_that_cannot_be(size, overlap, words):
    with pytest.raises(ValueError, match=words):
        Chunking(size, overlap)
