"""Named corpora, and their split: from a name to documents.

A document's side is decided by the hash of its own text. So the split needs no file, is the same on every machine,
and a document that is added later moves no other; two copies of one text are never on two sides.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from llm_data.text.files import cut_long, read_documents, read_lines, split_text
from llm_data.text.python_source import library_fingerprint, read_docstrings, read_functions, read_modules
from llm_data.text.search import CorpusError, find_files, shown
from llm_data.workspace import digest

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
NAMES = ("python", "python-functions", "python-docstrings", "shakespeare", "wikitext-2", "wikitext-103")

READING = 2  # goes up when the same file comes to give other documents
# Pinned: a revision names the content on the hub, a checksum the content of a local copy.
WIKITEXT = ("Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3")
SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
)
SHA256 = {
    "tinyshakespeare/input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "wikitext-2/valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "wikitext-2/test.txt": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}


@dataclass(frozen=True)
class Corpus:
    """Documents behind a name.

    Attributes:
        name: as `load_corpus` was given it.
        source: where the text comes from, in a few words.
        fingerprint: changes with the text, and with nothing else (for `text:` files: no path and no time is in it);
            16 hexadecimal digits.
        read: yields all documents, in an order that never changes; each call reads again, in constant memory.
        val_percent, test_percent: share of the documents on these two sides.
    """

    name: str
    source: str
    fingerprint: str
    read: Callable[[], Iterator[str]]
    val_percent: float = 5.0
    test_percent: float = 5.0

    def __post_init__(self) -> None:
        for name, share in (("val_percent", self.val_percent), ("test_percent", self.test_percent)):
            if not isinstance(share, (int, float)) or not 0 <= share < 100:
                raise CorpusError(f"{name}={share!r}: a share of documents lies in [0, 100)")
        if self.val_percent + self.test_percent >= 100:
            raise CorpusError(
                f"val_percent={self.val_percent} and test_percent={self.test_percent} leave nothing to train on; "
                "together they must stay under 100"
            )

    def documents(self, split: Split | None = None) -> Iterator[str]:
        """The documents of one side, or of all three, in the corpus's own order.

        Raises:
            CorpusError: for an unknown split, and after the last document when there was none on that side.
        """
        if split is not None and split not in SPLITS:
            raise CorpusError(f"split {split!r}: choose one of {', '.join(SPLITS)}, or None for all")
        count = total = 0
        for document in filter(None, self.read()):
            total += 1
            if split is None or self.side(document) == split:
                count += 1
                yield document
        if not count:
            if not total:
                raise CorpusError(f"corpus {self.name}: {self.source} holds no text")
            change = f"raise {split}_percent" if split != "train" else "lower val_percent and test_percent"
            raise CorpusError(
                f"corpus {self.name}: none of its {total} documents falls into {split!r}; {change}, or add documents"
            )

    def side(self, document: str) -> Split:
        """Which split a document belongs to."""
        share = int.from_bytes(hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
        if share * 100 < self.test_percent:
            return "test"
        return "val" if share * 100 < self.test_percent + self.val_percent else "train"


def load_corpus(
    name: str,
    *,
    val_percent: float = 5.0,
    test_percent: float = 5.0,
    errors: Literal["strict", "replace"] = "strict",
) -> Corpus:
    """The corpus of that name.

    `python` is the running Python's standard library, a module a document; `python-functions` its functions,
    `python-docstrings` its docstrings; `shakespeare` tiny Shakespeare, a speech a document; `wikitext-2` and
    `wikitext-103` (tokenised form), an article a document; `text:PATH` your own files (see `llm_data.text.files`). The
    first three are on every machine. For the others a copy below the folder `COURSE_DATA` is taken if there is one, and
    else the hub is asked.

    Args:
        name: one of the above.
        val_percent, test_percent: share of the documents for validation and test.
        errors: what to do with bytes of `text:` files that are not UTF-8: refuse them, or replace them by U+FFFD.

    Raises:
        CorpusError: for an unknown name, a missing path, a local copy that is not the pinned text, or a corpus that
            is neither here nor to be had from the hub.
    """
    if not isinstance(name, str):
        raise CorpusError(f"a corpus is named by a string; for files write 'text:{name}'")
    if errors not in ("strict", "replace"):
        raise CorpusError(f"errors={errors!r}: choose 'strict' or 'replace'")
    if name.startswith("text:"):
        files = find_files(name.removeprefix("text:"))
        source, read = f"{len(files)} file{'s' * (len(files) > 1)}", _file_reader(files, errors)
        fingerprint = digest(READING, errors, [(file.suffix.lower() == ".jsonl", _sha256(file)) for file in files])
    elif name in NAMES[:3]:
        source, read = _library(name)
        fingerprint = digest(name, library_fingerprint())
    elif name == "shakespeare":
        text = _shakespeare()
        source, fingerprint = "tiny Shakespeare", digest(SHA256["tinyshakespeare/input.txt"])
        read = lambda: split_text([text], "\n\n")  # noqa: E731
    elif name in ("wikitext-2", "wikitext-103"):
        source, fingerprint, read = _wikitext(name)
    else:
        raise CorpusError(f"corpus {name!r} is unknown; choose one of {', '.join(NAMES)}, or text:PATH")
    return Corpus(name, source, fingerprint, read, val_percent, test_percent)


def is_local(name: str) -> bool:
    """Whether `load_corpus(name)` needs no network: the corpus is on every machine, or lies below `COURSE_DATA`."""
    if name.startswith("text:") or name in NAMES[:3]:
        return True
    return bool(_local_parts(name))


def _local_parts(name: str) -> list[Path]:
    """The local files of a named corpus, in their order, checked against the pinned sums where one is known."""
    folder = os.environ.get("COURSE_DATA")
    if not folder:
        return []
    if not Path(folder).is_dir():
        raise CorpusError(f"COURSE_DATA={folder} is no folder, seen from {Path.cwd().name}; give its absolute path")
    parts = {"shakespeare": ["tinyshakespeare/input.txt"]}.get(
        name, [f"{name}/{part}.txt" for part in ("train", "valid", "test")]
    )
    found = [part for part in parts if (Path(folder) / part).is_file()]
    for part in found:
        if part in SHA256:
            actual = _sha256(Path(folder) / part)
            if actual != SHA256[part]:
                raise CorpusError(
                    f"{Path(folder) / part} is not the pinned text (sha256 {actual[:12]}, expected "
                    f"{SHA256[part][:12]}); replace it, or read it as text:{Path(folder) / part}"
                )
    return [Path(folder) / part for part in found]


def _library(name: str) -> tuple[str, Callable[[], Iterator[str]]]:
    readers = {
        "python": ("modules", _whole(read_modules)),
        "python-functions": ("functions", read_functions),
        "python-docstrings": ("docstrings", read_docstrings),
    }
    what, read = readers[name]
    return f"the standard library's {what}", read


def _shakespeare() -> str:
    local = _local_parts("shakespeare")
    if local:
        return local[0].read_text(encoding="utf-8")
    rows = _from_hub("shakespeare", "text", data_files=SHAKESPEARE, sample_by="document", split="train")
    text: str = rows[0]["text"]
    actual = hashlib.sha256(text.encode()).hexdigest()
    if actual != SHA256["tinyshakespeare/input.txt"]:
        raise CorpusError(f"{SHAKESPEARE} has changed: sha256 {actual[:12]} is not the pinned one")
    return text


def _wikitext(name: str) -> tuple[str, str, Callable[[], Iterator[str]]]:
    parts = _local_parts(name)
    if parts:
        source = f"{name}: local {', '.join(part.name for part in parts)}"
        fingerprint = digest(READING, [(part.name, _sha256(part)) for part in parts])
        return source, fingerprint, lambda: _articles(line for part in parts for line in read_lines(part))
    repository, revision = WIKITEXT
    rows = _from_hub(name, repository, f"{name}-v1", revision=revision, split="train+validation+test")
    return (
        f"{name}: {repository}, all three parts",
        digest(name, revision),
        lambda: _articles(row["text"] for row in rows),
    )


def _articles(lines: Iterator[str]) -> Iterator[str]:
    """Lines of WikiText as articles: one begins at each ` = Title = `. Blank lines, which the hub and the original
    files keep in different forms, are dropped."""
    article: list[str] = []
    for line in (line.strip() for line in lines):
        if line.startswith("= ") and not line.startswith("= =") and article:
            yield from cut_long("\n".join(article))
            article = []
        if line:
            article.append(line)
    if article:
        yield from cut_long("\n".join(article))


def _sha256(path: Path) -> str:
    """Of a file's bytes: neither its path nor its time says what is in it."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorpusError(
            f"{shown(path)}: cannot be read ({error.strerror}); make it readable, or leave it out"
        ) from None


def _file_reader(files: list[Path], errors: str) -> Callable[[], Iterator[str]]:
    return lambda: (document for file in files for document in read_documents(file, errors))


def _whole(read: Callable[[], Iterator[str]]) -> Callable[[], Iterator[str]]:
    return lambda: (piece for document in read() for piece in cut_long(document))


def _from_hub(name: str, *arguments: str, **options: str):  # type: ignore[no-untyped-def]  # datasets is imported late
    """Rows through `datasets`; what it raises without a network becomes one line with the three ways out."""
    import datasets

    quiet = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity_error()
    try:
        return datasets.load_dataset(*arguments, **options)
    except Exception as error:
        reason = str(error).split("\n")[0][:120]
        raise CorpusError(
            f"corpus {name} is not on this machine and the hub gave {type(error).__name__} ({reason}). Three ways "
            "out: connect to a network once; put a copy below the folder that COURSE_DATA names (README of Module 2 "
            "says which files); or take the corpus 'python', which needs neither"
        ) from error
    finally:
        datasets.utils.logging.set_verbosity(quiet)
