import os
import socket

import llm_data.text.search as file_search
import pytest
from llm_data.text.corpora import load_corpus
from llm_data.text.files import CorpusError, find_files, read_documents


def write(path, text="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(path, folder):
    return [str(file.relative_to(folder)) for file in find_files(path)]


def test_each_real_file_is_found_once(tmp_path):
    write(tmp_path / "a.txt")
    write(tmp_path / "deep" / "b.txt")
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "deep")
    (tmp_path / "0-link.md").symlink_to(tmp_path / "deep" / "b.txt")
    (tmp_path / "z.txt").symlink_to("a.txt")
    expected = ["0-link.md", "a.txt"]  # b.txt goes by the first of its names in the order of paths
    assert names(tmp_path, tmp_path) == names(f"{tmp_path}/**/*", tmp_path) == expected
    assert names(f"{tmp_path}/**/*.txt", tmp_path) == ["a.txt", "deep/b.txt"]


def test_a_folder_elsewhere_is_reached_through_a_link(tmp_path):
    write(tmp_path / "elsewhere" / "a.txt")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "linked").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "notes", tmp_path) == ["notes/linked/a.txt"]


def test_hidden_and_broken_names_are_left_out(tmp_path):
    write(tmp_path / "a.txt")
    for hidden in (".git/b.txt", ".ipynb_checkpoints/a-checkpoint.txt", ".c.txt"):
        write(tmp_path / hidden)
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "self.txt").symlink_to("self.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.getcwd()
        os.chdir(tmp_path)  # a socket's path may be short only
        try:
            listener.bind("socket.txt")
        finally:
            os.chdir(before)
        assert names(tmp_path, tmp_path) == names(f"{tmp_path}/*", tmp_path) == ["a.txt"]
    assert names(tmp_path / ".git", tmp_path) == [".git/b.txt"]
    assert names(tmp_path / ".c.txt", tmp_path) == names(f"{tmp_path}/.c*", tmp_path) == [".c.txt"]


def test_a_path_that_is_no_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    write(tmp_path / "a.txt")
    for path, message in (
        (tmp_path / "gone.txt", "a link that leads to nothing"),
        (tmp_path / "pipe.txt", "a pipe, socket or device"),
        ("/dev/null", "a pipe, socket or device"),
        (tmp_path / "a.txt" / "b", "no such file or folder"),
        ("~nobody-of-that-name/a.txt", "home directory"),
        ("a" * 5000, "File name too long"),
        ("a\0b", "null"),
        ("\ud800", "surrogates not allowed"),
        ("two\nlines\x1b[31m", r"two\\nlines\\x1b\[31m: no such file"),
        (b"\xff.txt".decode("utf-8", "surrogateescape"), r"\\udcff.txt: no such file"),
    ):
        with pytest.raises(CorpusError, match=message) as caught:
            load_corpus(f"text:{path}")
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/*/*.txt"])
def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, pattern):
    write(tmp_path / "a.txt")
    write(tmp_path / "closed" / "b.txt")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(file_search.os, "scandir", refuse)
    with pytest.raises(CorpusError, match=r"closed: this folder cannot be read \(Permission denied\)"):
        find_files(f"{tmp_path}{pattern}")


def test_names_that_are_not_utf8_are_read(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.txt"
    with open(path, "w") as file:
        file.write("text")
    [found] = find_files(tmp_path)
    assert os.fsencode(found) == path and list(load_corpus(f"text:{tmp_path}").documents()) == ["text"]


def test_a_file_that_may_not_be_read_or_is_gone_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt")
    corpus = load_corpus(f"text:{tmp_path}")
    path.unlink()
    with pytest.raises(CorpusError, match=r"a\.txt: cannot be read \(No such file or directory\)"):
        list(corpus.documents())
    write(path)
    monkeypatch.setattr(type(path), "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(CorpusError, match=r"a\.txt: cannot be read \(denied\)"):
        load_corpus(f"text:{tmp_path}")


def test_a_file_cut_short_while_it_is_read_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "one\n\n" * 1000)
    monkeypatch.setattr("llm_data.text.files.BLOCK", 500)
    documents = read_documents(path)
    next(documents)
    os.truncate(path, 700)
    with pytest.raises(CorpusError, match=r"a\.txt: was cut short while it was read"):
        list(documents)
