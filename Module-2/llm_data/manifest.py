"""What a folder of token shards holds, and whether it is still what was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class ShardError(RuntimeError):
    """Token shards that must not be read; the message names the shard and says what to do."""


@dataclass(frozen=True)
class Shard:
    """One line of the manifest.

    Attributes:
        name: the two files are `NAME.tokens.npy` and `NAME.lengths.npy`.
        documents, tokens, text_bytes: how much is in it; the end-of-text ids are among the tokens, text in UTF-8.
        text_sha256: of the documents that went in.
        sha256: of the two files, one after the other.
    """

    name: str
    documents: int
    tokens: int
    text_bytes: int
    text_sha256: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the files of a folder are. `complete` is False until the last shard is written."""

    corpus: str
    split: str
    fingerprint: str
    tokenizer_sha256: str
    end_of_text: int
    vocab_size: int
    dtype: str
    complete: bool
    shards: list[Shard] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        return sum(shard.text_bytes for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Put the manifest in place in one step, so that a reader sees the old or the new one."""
        text = json.dumps(asdict(self), indent=1)
        write_in_place(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None where there is none, or none that this version can read."""
        try:
            values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            return cls(**{**values, "shards": [Shard(**shard) for shard in values["shards"]]})
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Built:
    """What `build_shards` did: the names of the shards it wrote, kept, and wrote again because they were damaged."""

    manifest: Manifest
    written: tuple[str, ...]
    kept: tuple[str, ...]
    damaged: tuple[str, ...]

    def __str__(self) -> str:
        of = self.manifest
        text = f"{of.corpus}, {of.split}: {of.documents:,} documents, {of.tokens:,} tokens in {len(of.shards)} shards"
        text += f" ({len(self.written)} written, {len(self.kept)} kept)"
        return text + (f"; damaged and rebuilt: {', '.join(self.damaged)}" if self.damaged else "")


def is_whole(folder: Path | str, shard: Shard) -> bool:
    """Whether the files of a shard are there and have the manifest's checksum."""
    try:
        return checksum(shard_paths(Path(folder), shard.name)) == shard.sha256
    except OSError:
        return False


def shard_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The two files of a shard: token ids, and lengths of documents."""
    return folder / f"{name}.tokens.npy", folder / f"{name}.lengths.npy"


def checksum(paths: tuple[Path, ...]) -> str:
    """sha256 of files, one after the other."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def write_in_place(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place and move it there, so that no half of it is ever under its name."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
