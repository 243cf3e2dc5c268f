"""A shard and its index in two short pieces: the files of `writer`, byte for byte, and what `reader` gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_shard(path: Path | str, documents: Sequence[Sequence[int]]) -> None:
    """Two files: the ids of all documents, one after the other, and the documents' lengths.

    Args:
        path: without an ending; `.tokens.npy` and `.lengths.npy` are put behind it.
        documents: token ids below 65,536, each document closed by its end of text.
    """
    np.save(f"{path}.tokens.npy", np.concatenate(documents).astype(np.uint16))
    np.save(f"{path}.lengths.npy", np.array([len(ids) for ids in documents], dtype=np.uint32))


class ShardReader:
    """The documents of one shard by their number; the ids stay in the file until they are used."""

    def __init__(self, path: Path | str) -> None:
        self.tokens = np.load(f"{path}.tokens.npy", mmap_mode="r")
        self.ends = np.cumsum(np.load(f"{path}.lengths.npy"), dtype=np.int64)

    def __len__(self) -> int:
        """Documents."""
        return len(self.ends)

    def __getitem__(self, document: int) -> np.ndarray:
        """The ids of one document."""
        start = self.ends[document - 1] if document else 0
        return self.tokens[start : self.ends[document]]
