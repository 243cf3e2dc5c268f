"""The data set: labels, what is cut, the split by file, and bad input."""

from pathlib import Path

import pytest
import torch
from lightning_basics.baselines import logistic_regression, majority_accuracy
from lightning_basics.data import (
    CLASSES,
    PAD,
    UNKNOWN,
    Vocabulary,
    count_characters,
    is_validation,
    label_lines,
    load_lines,
    source_files,
)

SOURCE = '''"""Module docstring,
of two lines."""

# a whole comment
import os  # mixed, so left out


class Thing:
    r"""Raw docstring."""

    text = """not a docstring
# nor a comment"""

    def method(self):
        'single quotes'
        return os.sep
'''


def write_library(folder: Path, files: int = 30, lines: int = 8) -> Path:
    for number in range(files):
        body = [f'"""Docstring number {number} of the library, line {i}.\n"""' for i in range(1)]
        for i in range(lines):
            body.append(f"# comment {i} in file number {number} here")
            body.append(f"value_{number}_{i} = compute({i}, {number})")
            body.append(f'def function_{number}_{i}():\n    """What function {i} of file {number} does."""')
        (folder / f"file_{number}.py").write_text("\n".join(body) + "\n")
    return folder


def test_label_lines() -> None:
    assert list(label_lines(SOURCE)) == [
        ("docstring", "Module docstring,"),
        ("docstring", "of two lines."),
        ("comment", "a whole comment"),
        ("code", "class Thing:"),
        ("docstring", "Raw docstring."),
        ("code", 'text = """not a docstring'),
        ("code", '# nor a comment"""'),
        ("code", "def method(self):"),
        ("docstring", "single quotes"),
        ("code", "return os.sep"),
    ]


@pytest.mark.parametrize("odd", ["\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\x0b"])
@pytest.mark.parametrize("place", ["comment", "text", "docstring"])
def test_a_character_that_ends_no_line_of_python_moves_no_label(odd: str, place: str) -> None:
    spots = {name: odd if name == place else "" for name in ("comment", "text", "docstring")}
    source = (
        f'"""A docstring{spots["docstring"]} of the module."""\n# a comment{spots["comment"]} stands here\n'
        f"first = 'text{spots['text']}'\n# another comment\nsecond = first + 1\n"
    )
    assert [kind for kind, _ in label_lines(source)][:5] == ["docstring", "comment", "code", "comment", "code"]
    assert list(label_lines(source))[3:5] == [("comment", "another comment"), ("code", "second = first + 1")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_line_that_python_knows(end: str) -> None:
    assert list(label_lines(SOURCE.replace("\n", end))) == list(label_lines(SOURCE))


def test_a_form_feed_between_functions_moves_no_label() -> None:
    parts = SOURCE.split("\n\n")
    assert list(label_lines("\n\f\n".join(parts))) == list(label_lines(SOURCE))


LINES = ["return it", "raw text", "r'quoted' text", "under way:", '"quoted"', "== a title ==", "- a point", "up"]


@pytest.mark.parametrize("prefix", ["", "r", "R", "u", "U"])
def test_a_text_is_cut_alike_in_a_comment_and_in_a_docstring(prefix: str) -> None:
    docstring = "\n".join(["Opening line", *LINES])
    source = f"{prefix}'''{docstring}'''\n" + "".join(f"# {line}\n" for line in ["Opening line", *LINES])
    found: dict[str, list[str]] = {"docstring": [], "comment": []}
    for kind, text in label_lines(source):
        found[kind].append(text)
    assert found["docstring"] == found["comment"]
    assert found["comment"][:4] == ["Opening line", "return it", "raw text", "r'quoted' text"]
    assert found["comment"][4:] == ["under way", "quoted", "a title", "a point", "up"]


@pytest.mark.parametrize("prefix", ["", "r"])
@pytest.mark.parametrize("opening", ["return the path", "up it goes"])
def test_only_the_prefix_of_a_docstring_is_cut(prefix: str, opening: str) -> None:
    assert list(label_lines(f'{prefix}"""{opening}"""\n')) == [("docstring", opening)]


def test_source_that_is_not_python() -> None:
    with pytest.raises(SyntaxError):
        list(label_lines("def ("))


def test_the_standard_library_is_split_by_file_and_balanced() -> None:
    train, val = load_lines(per_class=400)
    for lines, count in ((train, 400), (val, 100)):
        assert torch.bincount(torch.tensor(lines.labels)).tolist() == [count] * len(CLASSES)
        assert len(lines.texts) == len(lines.labels) == len(lines.files) == len(lines)
        assert all(len(text) >= 12 for text in lines.texts)
    assert not set(train.files) & set(val.files)
    assert all(is_validation(name) for name in val.files)
    assert not any(is_validation(name) for name in train.files)
    texts = train.texts + val.texts
    assert len(set(texts)) == len(texts)


def test_the_same_seed_draws_the_same_lines(tmp_path: Path) -> None:
    library = write_library(tmp_path)
    assert load_lines(12, root=library) == load_lines(12, root=library)
    assert load_lines(12, root=library) != load_lines(12, seed=1, root=library)


def test_a_new_file_moves_no_other_to_the_other_side(tmp_path: Path) -> None:
    library = write_library(tmp_path)
    train, val = load_lines(40, root=library)
    (library / "another.py").write_text("# a comment that is new here\n")
    train_after, val_after = load_lines(40, root=library)
    assert set(train.files).isdisjoint(val_after.files) and set(val.files).isdisjoint(train_after.files)


def test_broken_and_undecodable_files_are_passed_over(tmp_path: Path) -> None:
    library = write_library(tmp_path)
    expected = load_lines(12, root=library)
    (library / "broken.py").write_text("def (")
    (library / "latin.py").write_bytes(b"# caf\xe9 with a comment of some length\n")
    (library / "null.py").write_bytes(b"# a comment\0 with a null byte in it\n")
    assert load_lines(12, root=library) == expected


def test_tests_are_left_out(tmp_path: Path) -> None:
    write_library(tmp_path, files=1)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "hidden.py").write_text("x = 1\n")
    assert [path.name for path in source_files(tmp_path)] == ["file_0.py"]


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.py file below"):
        load_lines(root=tmp_path)
    write_library(tmp_path, files=3)
    with pytest.raises(ValueError, match=r"code lines wanted for training, .* found; change `per_class`"):
        load_lines(per_class=5000, root=tmp_path)
    with pytest.raises(ValueError, match="change `per_class`"):
        load_lines(per_class=0, root=tmp_path)
    with pytest.raises(ValueError, match="size=2"):
        Vocabulary(["a b"], size=2)


def test_vocabulary() -> None:
    vocabulary = Vocabulary(["b b a.", "b a c"], size=4)
    assert len(vocabulary) == 4
    assert vocabulary.ids == {"b": 2, "a": 3}
    ids = vocabulary.encode(["a b", "z a b a", ""], context=3)
    assert ids.tolist() == [[3, 2, PAD], [UNKNOWN, 3, 2], [PAD, PAD, PAD]]


def test_count_characters() -> None:
    counts = count_characters(["aab", "é"])
    assert counts.shape == (2, 128)
    assert counts[0, ord("a")] == pytest.approx(torch.log(torch.tensor(3.0)).item())
    assert counts[0].count_nonzero() == 2
    assert counts[1, 0] > 0  # everything beyond ASCII is counted at 0


def test_baselines() -> None:
    assert majority_accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 2])) == 0.25
    features = torch.randn(300, 5)
    labels = (features @ torch.randn(5, 3)).argmax(dim=1)
    first, second = (logistic_regression(features, labels, 3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert (first(features).argmax(1) == labels).float().mean() > 0.95  # the classes are linear
