"""Lines of Python's standard library, labelled code, comment or docstring: real text that every machine has.

`load_lines()` gives balanced, deduplicated training and validation lines, split by source file, so that no module is
on both sides. Nothing is downloaded.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import random
import re
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CLASSES = ("code", "comment", "docstring")
# Tests, vendored copies and generated prose: not what the library's authors wrote to be read.
SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "turtledemo", "pydoc_data"}
)
PAD, UNKNOWN = 0, 1
WORD = re.compile(r"\w+|[^\w\s]")
# Cut at both ends of comments and of docstrings alike: what is cut from one class only would tell the two apart.
MARKS = "#!:-=\"' "


@dataclass(frozen=True)
class Lines:
    """Texts with their labels. `labels[i]` is an index into `CLASSES`; `files[i]` says where text i came from."""

    texts: list[str]
    labels: list[int]
    files: list[str]

    def __len__(self) -> int:
        return len(self.texts)


def label_lines(source: str) -> Iterator[tuple[str, str]]:
    """Yield `(class, text)` for each line of a Python source that is wholly code, comment or docstring.

    What would give a class away is cut: all indentation, the letter before a docstring's quotes, and `MARKS`.
    Lines that hold both code and a comment are left out, and so are blank ones.

    Raises:
        SyntaxError, ValueError: when `source` is not Python.
    """
    # The parser's lines end in "\n", "\r\n" or "\r". `str.splitlines` also cuts at form feeds, U+2028 and others,
    # which would move every label behind one.
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    docstrings: set[int] = set()
    openings: set[int] = set()  # first lines of docstrings
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
                openings.add(first.lineno)
    comments: set[int] = set()
    code: set[int] = set()
    blank = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in blank:
            code.update(range(token.start[0], token.end[0] + 1))
    for number, line in enumerate(source.split("\n"), start=1):
        text = line.strip()
        if number in docstrings:
            # A prefix stands before the opening quotes only; elsewhere an r is the first letter of a word.
            opened = re.sub("^[rRuU](?=[\"'])", "", text) if number in openings else text
            yield "docstring", opened.strip(MARKS)
        elif number in code and number not in comments:
            yield "code", text
        elif number in comments and number not in code:
            yield "comment", text.strip(MARKS)


def source_files(root: Path | str | None = None) -> list[Path]:
    """The `.py` files below `root` (the running Python's standard library by default), without tests.

    They come in the order of a hash of their names: a mixture of all packages from the first file on, and the same
    on every machine.

    Raises:
        FileNotFoundError: when there are none.
    """
    folder = _library(root)
    files = []
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if name not in SKIPPED]  # installed packages are many, and not gone through
        files += [Path(place, name) for name in names if name.endswith(".py") and name not in SKIPPED]
    if not files:
        raise FileNotFoundError(f"no .py file below {folder}; pass the folder of a Python library as `root`")
    return sorted(files, key=lambda path: _hash(path.relative_to(folder).as_posix()))


def is_validation(name: str, percent: int = 25) -> bool:
    """Whether a file is on the validation side: its name's hash decides, so that a new file moves no other."""
    return _hash(name) % 100 < percent


def load_lines(
    per_class: int = 6000, seed: int = 0, root: Path | str | None = None, min_length: int = 12
) -> tuple[Lines, Lines]:
    """Training and validation lines, equally many of each class, from different files.

    A text that occurs more than once, on either side, is kept at its first place only.

    Args:
        per_class: training lines of each class; validation gets a quarter of it.
        seed: decides which lines are drawn, and their order.
        root: folder of Python sources; the running Python's standard library by default.
        min_length: shorter lines (`else:`, `return`) are left out, in characters.

    Raises:
        FileNotFoundError: when `root` holds no Python file.
        ValueError: when a class has fewer lines than asked for.
    """
    folder = _library(root)
    wanted = {"train": per_class, "val": per_class // 4}
    found: dict[str, dict[str, list[tuple[str, str]]]] = {side: {kind: [] for kind in CLASSES} for side in wanted}
    seen: set[str] = set()
    # The hash puts validation files anywhere in the order, so both sides fill up; half as many again leaves a choice.
    for path in source_files(folder):
        if all(len(rows) >= 1.5 * wanted[side] for side in wanted for rows in found[side].values()):
            break
        name = path.relative_to(folder).as_posix()
        try:
            labelled = list(label_lines(path.read_text(encoding="utf-8")))
        except (SyntaxError, ValueError, tokenize.TokenError):
            continue  # a few library files are wrong on purpose, or not in UTF-8
        side = found["val" if is_validation(name) else "train"]
        for kind, text in labelled:
            if len(text) >= min_length and text not in seen:
                seen.add(text)
                side[kind].append((text, name))
    order = random.Random(seed)
    return _balanced(found["train"], wanted["train"], "training", order), _balanced(
        found["val"], wanted["val"], "validation", order
    )


def _balanced(side: dict[str, list[tuple[str, str]]], count: int, name: str, order: random.Random) -> Lines:
    rows: list[tuple[str, int, str]] = []
    for label, kind in enumerate(CLASSES):
        if len(side[kind]) < max(count, 1):
            raise ValueError(
                f"{max(count, 1)} {kind} lines wanted for {name}, {len(side[kind])} found; "
                "change `per_class`, or pass a larger folder as `root`"
            )
        rows += [(text, label, file) for text, file in order.sample(side[kind], count)]
    order.shuffle(rows)
    return Lines([text for text, _, _ in rows], [label for _, label, _ in rows], [file for _, _, file in rows])


class Vocabulary:
    """The most frequent words of the training lines; a word is a run of letters, digits and `_`, or one other mark.

    Args:
        texts: training lines.
        size: ids in all, `PAD` and `UNKNOWN` included.
    """

    def __init__(self, texts: Sequence[str], size: int = 4096) -> None:
        if size < 3:
            raise ValueError(f"size={size}: a vocabulary needs at least 3 ids (padding, unknown, one word)")
        counts = Counter(word for text in texts for word in WORD.findall(text))
        # Counter keeps the order of first sight among equals, so the ids are the same in every run.
        self.ids = {word: number for number, (word, _) in enumerate(counts.most_common(size - 2), start=2)}

    def __len__(self) -> int:
        return len(self.ids) + 2

    def encode(self, texts: Sequence[str], context: int) -> Int[Tensor, "lines context"]:
        """Word ids of each line, cut or padded with `PAD` to `context` words."""
        ids = torch.full((len(texts), context), PAD, dtype=torch.long)
        for row, text in enumerate(texts):
            words = [self.ids.get(word, UNKNOWN) for word in WORD.findall(text)[:context]]
            ids[row, : len(words)] = torch.tensor(words, dtype=torch.long)
        return ids


def count_characters(texts: Sequence[str]) -> Float[Tensor, "lines 128"]:
    """The bag of characters of each line: log(1 + how often) for each ASCII character; position 0 takes all others."""
    counts = np.zeros((len(texts), 128), dtype=np.float32)
    for row, text in enumerate(texts):
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        counts[row] = np.bincount(np.where(codes < 128, codes, 0), minlength=128)
    return torch.from_numpy(np.log1p(counts))


def _library(root: Path | str | None) -> Path:
    return Path(sysconfig.get_path("stdlib") if root is None else root)


def _hash(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)
