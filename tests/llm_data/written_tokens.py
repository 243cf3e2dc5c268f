"""Token shards written by hand, without a tokenizer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from llm_data.shards.manifest import Manifest, Shard, checksum, shard_paths
from llm_data.shards.reader import TokenShards


def write_tokens(folder: Path, documents: Sequence[Sequence[int]], shards: int = 1) -> TokenShards:
    """Token shards of these ids, without a tokenizer: the documents dealt to so many shards in order."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, part in enumerate(np.array_split(np.arange(len(documents)), shards)):
        name = f"train-{number:05d}"
        ids = [token for document in part for token in documents[document]]
        paths = shard_paths(folder, name)
        np.save(paths[0], np.array(ids, dtype=np.uint16))
        np.save(paths[1], np.array([len(documents[document]) for document in part], dtype=np.uint32))
        listed.append(Shard(name, len(part), len(ids), 0, "", checksum(paths)))
    Manifest("made", "train", "", "", 0, 2**16, "uint16", True, listed).write(folder)
    return TokenShards(folder)


def counted(lengths: Sequence[int]) -> list[list[int]]:
    """Documents of these lengths in which every token has an id of its own, from 1 on."""
    ends = np.cumsum(lengths)
    return [list(range(end - length + 1, end + 1)) for end, length in zip(ends.tolist(), lengths, strict=True)]
