"""A folder into a store: only what changed is encoded, and what is gone leaves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_rag.folder.documents import MAX_BYTES, Document, LeftOut, read_folder
from llm_rag.store.store import Store


@dataclass
class Report:
    """What an indexing run did; paths of each kind.

    Attributes:
        added, changed, removed, unchanged: documents.
        moved: documents that only have another path: nothing was encoded.
        skipped: files that are no documents, with the reasons.
        encoded: passages.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: list[LeftOut] = field(default_factory=list)
    encoded: int = 0

    def __str__(self) -> str:
        kinds = ("added", "changed", "moved", "removed", "unchanged", "skipped")
        counts = ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in kinds)
        return f"{counts}; {self.encoded} passages encoded"


def index(
    folder: Path | str, store: Store, max_bytes: int = MAX_BYTES, said: Callable[[str], Any] | None = None
) -> Report:
    """Bring a store to what a folder holds.

    Stopped at any place, the same call goes on: each document is in whole or not at all, and those that are in and did
    not change are not encoded again. What is gone leaves at the end.

    Args:
        folder: of documents. One store holds one folder: what this one lacks is taken out.
        store: opened to write.
        max_bytes: larger files are left out.
        said: is told each document's path before it is encoded.

    Raises:
        ValueError: for a folder that cannot be read.
        StoreError: when the store cannot be written.
    """
    report, before = Report(), store.documents()
    root = Path(folder).expanduser()
    by_content: dict[str, list[str]] = defaultdict(list)
    for path, content in before.items():
        by_content[content].append(path)
    there: set[str] = set()
    for each in read_folder(folder, max_bytes, [store.path, *_beside(store.path)]):
        if isinstance(each, LeftOut):
            report.skipped.append(each)
            continue
        there.add(each.path)
        if before.get(each.path) == each.sha256:
            report.unchanged.append(each.path)
            continue
        old = _moved_from(each, by_content[each.sha256], root, there)
        if old is not None and each.path not in before:
            store.move(old, each.path)
            there.discard(old)
            before.pop(old)
            by_content[each.sha256].remove(old)
            report.moved.append(each.path)
            continue
        if said is not None:
            said(each.path)
        report.encoded += store.add(each)
        (report.changed if each.path in before else report.added).append(each.path)
    for path in sorted(before.keys() - there):
        store.remove(path)
        report.removed.append(path)
    return report


def _moved_from(document: Document, candidates: list[str], root: Path, there: set[str]) -> str | None:
    """The path of a document with the same text that is no longer in the folder, and that was cut by the same rule."""
    alike = [path for path in candidates if path.endswith(".py") == document.path.endswith(".py")]
    return next((path for path in alike if path not in there and not (root / path).exists()), None)


def _beside(path: Path) -> list[Path]:
    """Files of SQLite's beside a store while it is written."""
    return [path.with_name(f"{path.name}-{end}") for end in ("journal", "wal", "shm")]
