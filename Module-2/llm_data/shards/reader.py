"""The token ids of a corpus, mapped into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm_data.errors import one_line
from llm_data.shards.manifest import Manifest, ShardError, is_whole, shard_paths

REBUILD = "prepare_data() or build_shards rebuilds it"


class TokenShards:
    """The token ids of a split, mapped into memory, document by document.

    Args:
        folder: made by `build_shards`.
        verify: read every byte once and compare the checksums. Without it only the files' sizes are compared, which
            is for processes that know another one has verified them.

    Attributes:
        manifest: what the files are.
        lengths: tokens of each document, the end-of-text id included.

    Raises:
        ShardError: when the folder holds no complete set, or a shard is damaged; it is named, and none of it read.
    """

    def __init__(self, folder: Path | str, verify: bool = True) -> None:
        self.folder = Path(folder)
        manifest = Manifest.read(self.folder)
        if manifest is None or not manifest.complete:
            state = "no token shards" if manifest is None else "an unfinished set of token shards"
            raise ShardError(f"{self.folder} holds {state}; prepare_data() or build_shards makes them")
        self.manifest = manifest
        self._tokens: list[np.ndarray] = []
        lengths = []
        for shard in manifest.shards:
            if verify and not is_whole(self.folder, shard):
                raise ShardError(f"shard {shard.name} in {self.folder} is damaged; {REBUILD}")
            tokens_path, lengths_path = shard_paths(self.folder, shard.name)
            try:
                tokens, sizes = np.load(tokens_path, mmap_mode="r"), np.load(lengths_path)
            except Exception as error:  # whatever NumPy makes of a damaged header
                raise ShardError(
                    f"shard {shard.name} in {self.folder} is damaged ({one_line(error)}); {REBUILD}"
                ) from None
            if tokens.shape != (shard.tokens,) or sizes.shape != (shard.documents,) or sizes.sum() != shard.tokens:
                raise ShardError(f"shard {shard.name} in {self.folder} has another size; {REBUILD}")
            # A plain array over the same mapped bytes: slices of `np.memmap` itself cost nine times as much.
            self._tokens.append(np.asarray(tokens))
            lengths.append(sizes)
        self.lengths = np.concatenate(lengths).astype(np.int64)
        self._last = np.cumsum([len(sizes) for sizes in lengths])  # documents up to each shard's end
        self._start = np.concatenate([np.cumsum(sizes, dtype=np.int64) - sizes for sizes in lengths])

    def __len__(self) -> int:
        """Documents."""
        return len(self.lengths)

    def __getitem__(self, document: int | np.integer) -> np.ndarray:
        """The ids of one document, its end-of-text id last; read from the file when they are used."""
        start = self._start[document]
        return self._tokens[np.searchsorted(self._last, document, side="right")][start : start + self.lengths[document]]

    def gather(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The ids of many pieces of documents, one after the other.

        Args:
            documents, starts, lengths: piece i is `self[documents[i]][starts[i] : starts[i] + lengths[i]]`.

        Returns:
            `lengths.sum()` ids, int64.
        """
        shards = np.searchsorted(self._last, documents, side="right")
        places = self._start[documents] + starts
        if len(shards) and (shards == shards[0]).all():
            return self._tokens[shards[0]][ranges(places, lengths)].astype(np.int64)
        result = np.empty(lengths.sum(), dtype=np.int64)
        ends = np.cumsum(lengths)
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            into = ranges(ends[here] - lengths[here], lengths[here])
            result[into] = self._tokens[shard][ranges(places[here], lengths[here])]
        return result


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`arange(start, start + length)` of each pair, one after the other, without a loop."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
