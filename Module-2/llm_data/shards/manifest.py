"""What a folder of token shards holds, and whether it is still what was written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from llm_data.whole_files import checksum, read_facts, write_facts, write_in_place

__all__ = [
    "MANIFEST",
    "Built",
    "Manifest",
    "Shard",
    "ShardError",
    "checksum",
    "is_whole",
    "shard_paths",
    "write_in_place",
]

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
    """What the files of a folder are. `complete` is False until the last shard is written.

    Each document is the ids `begin_of_text` (of the course's own tokenizers: none), its text's, and `end_of_text`.
    """

    corpus: str
    split: str
    fingerprint: str
    tokenizer_sha256: str
    end_of_text: int
    vocab_size: int
    dtype: str
    complete: bool
    shards: list[Shard] = field(default_factory=list)
    begin_of_text: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def text_tokens(self) -> int:
        """Tokens that are predicted from text: all but those that begin each document, which nothing predicts."""
        return self.tokens - self.documents * len(self.begin_of_text)

    def write(self, folder: Path) -> None:
        """Put the manifest in place in one step, so that a reader sees the old or the new one."""
        write_facts(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None where there is none, or one that was damaged or that another version wrote."""
        facts = read_facts(folder / MANIFEST)
        if facts is None or set(facts) != {each.name for each in fields(cls)}:
            return None
        return cls(**{**facts, "shards": [Shard(**shard) for shard in facts["shards"]]})


@dataclass(frozen=True)
class Built:
    """What `build_shards` did: the names of the shards it wrote, kept, and wrote again because they were damaged."""

    manifest: Manifest
    written: tuple[str, ...]
    kept: tuple[str, ...]
    damaged: tuple[str, ...]

    def __str__(self) -> str:
        made = self.manifest
        counts = f"{made.documents:,} documents, {made.tokens:,} tokens in {len(made.shards)} shards"
        text = f"{made.corpus}, {made.split}: {counts}"
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
