"""The rows of a plan, written out: a batch is then a few rows of a memory-mapped table.

Laying pieces of documents out in rows is the same work in every epoch, so it is done once and kept beside the shards,
with a checksum.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from course.files import sync
from llm_data.errors import one_line, reason
from llm_data.rows.packing import PADDED, Packing, Rows, plan_rows
from llm_data.shards.manifest import MANIFEST, Manifest, ShardError
from llm_data.shards.reader import TokenShards, ranges
from llm_data.whole_files import checksum, read_facts, write_facts
from llm_data.workspace import digest, locked

CHUNK_TOKENS = 1 << 20
PLAN_DOCUMENTS = 1 << 17
KIND = "rows"
REBUILD = "prepare_data() or build_table rebuilds them"


def table_folder(parent: Path | str, shards: Manifest, context: int, packing: Packing, seed: int, pad_id: int) -> Path:
    """Where the table of a plan lies: a folder of `parent`, whose name changes with everything that is in the rows."""
    plan = digest(_made_from(shards), context, packing, seed, pad_id)
    return Path(parent) / f"{packing}-{context}-{plan}"


def build_table(
    tokens: TokenShards, parent: Path | str, context: int, packing: Packing, seed: int = 0, pad_id: int = 0
) -> Path:
    """Plan the rows and write them into a folder of `parent`; a table that is there already, and whole, is kept.

    Tables of `parent` that were made from other token shards are deleted.

    Args:
        tokens: the ids.
        parent: of the table's folder.
        context, packing, seed: as for `plan_rows`.
        pad_id: fills up rows of packed plans; padded ones are stored without padding.

    Returns:
        The table's folder, `table_folder(...)`.

    Raises:
        ValueError: as `plan_rows`.
        OSError: when the files cannot be written.
    """
    folder = table_folder(parent, tokens.manifest, context, packing, seed, pad_id)
    if is_whole_table(folder):
        return folder
    shards = _made_from(tokens.manifest)
    with locked(folder):
        if not is_whole_table(folder):
            (folder / MANIFEST).unlink(missing_ok=True)
            try:
                rows = _write(folder, tokens, context, packing, seed, pad_id)
            except OSError as error:
                raise OSError(
                    f"the rows in {folder} cannot be written ({reason(error)}); make room there, or choose another "
                    "folder"
                ) from None
            facts = {
                "kind": KIND,
                "shards": shards,
                "packing": packing,
                "context": context,
                "seed": seed,
                "pad_id": pad_id,
            }
            facts |= {"rows": rows, "sha256": checksum(_paths(folder, packing))}
            write_facts(folder / MANIFEST, facts)
    for other in Path(parent).iterdir():
        if other != folder and _facts(other).get("shards", shards) != shards:  # `_facts` knows tables only
            shutil.rmtree(other)
    return folder


def is_whole_table(folder: Path) -> bool:
    """Whether the files of a table are there and have the checksum of its manifest."""
    try:
        facts = _facts(folder)
        return checksum(_paths(folder, facts["packing"])) == facts["sha256"]
    except (OSError, KeyError):
        return False


class RowTable:
    """Rows in memory-mapped files.

    Attributes:
        packing, context, pad_id: of the plan.
        plan: the folder's name, which changes with everything that decides what is in which row.
        filled: tokens of each row, padding not counted.
        ids: packed: (rows, context), padding included. Padded: one row after the other without padding.
        positions: packed: (rows, context), from 0 in each piece, and 0 in the padding. Padded: None.
        first: padded: where in `ids` each row begins.

    Args:
        folder: from `build_table`.

    Raises:
        ShardError: when there is no table, or its files are not of the size it says.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        facts = _facts(self.folder)
        if not facts:
            raise ShardError(f"{self.folder} holds no rows; prepare_data() or build_table makes them")
        self.packing: Packing = facts["packing"]
        self.context: int = facts["context"]
        self.pad_id: int = facts["pad_id"]
        self.plan = self.folder.name
        try:
            # Plain arrays over the mapped bytes: `take` on `np.memmap` costs 2.6 times as much for 16 rows of 256.
            arrays = [np.asarray(np.load(path, mmap_mode="r")) for path in _paths(self.folder, self.packing)]
        except Exception as error:  # whatever NumPy makes of a damaged header
            raise ShardError(f"the rows in {self.folder} are damaged ({one_line(error)}); {REBUILD}") from None
        self.filled, self.ids = arrays[0], arrays[1]
        self.positions: np.ndarray | None = None if self.packing in PADDED else arrays[2]
        self.labels: np.ndarray | None = None  # every token but a piece's first is a target
        self.first = np.cumsum(self.filled, dtype=np.int64) - self.filled
        if len(self.filled) != facts["rows"]:
            raise ShardError(f"the rows in {self.folder} have another size; {REBUILD}")

    def __len__(self) -> int:
        """Rows."""
        return len(self.filled)

    def __reduce__(self) -> tuple[type[RowTable], tuple[Path]]:
        # A loader's worker maps the files itself; pickling the arrays would copy the corpus.
        return RowTable, (self.folder,)


def _made_from(shards: Manifest) -> str:
    return digest([shard.sha256 for shard in shards.shards])


def _write(folder: Path, tokens: TokenShards, context: int, packing: Packing, seed: int, pad_id: int) -> int:
    """Write the files of a table; the number of rows."""
    paths = _paths(folder, packing)
    dtype = np.dtype(tokens.manifest.dtype)
    narrow = np.dtype(np.uint16 if context <= 2**16 else np.uint32)
    filled: list[np.ndarray] = []
    with ExitStack() as stack:
        ids_file, *positions_file = (stack.enter_context(path.open("wb")) for path in paths[1:])
        for file in (ids_file, *positions_file):
            _header(file, dtype, (2**40, context))  # of the same length as the true one, which replaces it
        for rows in _plans(tokens, context, packing, seed):
            filled.append(rows.lengths.astype(np.int32))
            width = np.full(len(rows), context) if positions_file else filled[-1]
            for chosen in _chunks(width):
                if positions_file:
                    ids, positions = lay_out(tokens, rows, chosen, pad_id)
                    positions_file[0].write(positions.astype(narrow).tobytes())
                else:
                    pieces = rows.pieces(chosen)
                    ids = tokens.gather(rows.document[pieces], rows.start[pieces], rows.length[pieces])
                ids_file.write(ids.astype(dtype).tobytes())
        np.save(paths[0], np.concatenate(filled))
        number = sum(map(len, filled))
        shape = (number, context) if positions_file else (int(sum(map(np.sum, filled))),)
        for file, kind in zip((ids_file, *positions_file), (dtype, narrow), strict=False):
            file.seek(0)
            _header(file, kind, shape)
    for path in paths:
        sync(path)
    return number


def _plans(tokens: TokenShards, context: int, packing: Packing, seed: int) -> Iterator[Rows]:
    """Plans of all documents, `PLAN_DOCUMENTS` at a time: a plan takes some 300 bytes a document."""
    order = np.arange(len(tokens))
    if len(tokens) > PLAN_DOCUMENTS:
        order = np.random.default_rng(seed).permutation(len(tokens))
    for first in range(0, len(tokens), PLAN_DOCUMENTS):
        documents = order[first : first + PLAN_DOCUMENTS]
        rows = plan_rows(tokens.lengths[documents], context, packing, seed)
        yield replace(rows, document=documents[rows.document])


def lay_out(tokens: TokenShards, rows: Rows, chosen: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and positions of rows, both (rows, context): pieces one after the other, then padding. Positions count from 0
    in every piece, and stay 0 in the padding."""
    pieces = rows.pieces(chosen)
    length = rows.length[pieces]
    row = np.repeat(np.arange(len(chosen)), rows.first[chosen + 1] - rows.first[chosen])
    filled = np.bincount(row, weights=length, minlength=len(chosen)).astype(np.int64)
    before = np.cumsum(length) - length
    begin = row * rows.context + before - (np.cumsum(filled) - filled)[row]  # of a piece, in the rows laid out flat
    place = ranges(begin, length)
    ids = np.full(len(chosen) * rows.context, pad_id, dtype=np.int64)
    ids[place] = tokens.gather(rows.document[pieces], rows.start[pieces], length)
    positions = np.zeros_like(ids)
    positions[place] = ranges(np.zeros_like(length), length)
    return ids.reshape(-1, rows.context), positions.reshape(-1, rows.context)


def _chunks(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive rows of about `CHUNK_TOKENS` together."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        begun = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, begun + CHUNK_TOKENS, side="right")), first + 1)
        yield np.arange(first, last)
        first = last


def _header(file, dtype: np.dtype, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})


def _paths(folder: Path, packing: Packing) -> tuple[Path, ...]:
    names = ("filled", "ids") if packing in PADDED else ("filled", "ids", "positions")
    return tuple(folder / f"{name}.npy" for name in names)


def _facts(folder: Path) -> dict[str, Any]:
    facts = read_facts(folder / MANIFEST) or {}
    return facts if facts.get("kind") == KIND else {}
