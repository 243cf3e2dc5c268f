"""Three kept stores of vectors on the same 384 numbers: sqlite-vec, a file of faiss, and lancedb where it is installed.

`uv run --with lancedb==0.40.0 python Module-10/race/stores.py --record docs/results/store_race.json` prints, for 5,000
and 50,000 vectors, seconds to insert them, to ask one question, bytes on the disk, and what is left when the process is
killed in the middle. Vectors are inserted in batches of 500, as an indexing run has them; faiss holds an index in
memory and is written once, at the end. The answers of all are compared with exact search.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from llm_rag.search.exact import ExactIndex

from course import scale
from course.files import write_text

DIM, BATCH, K = 384, 500, 10
Search = Callable[[torch.Tensor], list[int]]


def vectors_of(number: int, seed: int = 0) -> torch.Tensor:
    """Directions, drawn with the seed."""
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(number, DIM, generator=draw))


class SqliteVec:
    """apsw and sqlite-vec, a transaction a batch."""

    name, package = "sqlite-vec", "sqlite_vec"

    def __init__(self, folder: Path) -> None:
        import apsw
        import sqlite_vec  # type: ignore[import-untyped]

        self.path = folder / "store.db"
        self.base = apsw.Connection(str(self.path))
        self.base.enable_load_extension(True)
        self.base.load_extension(sqlite_vec.loadable_path())
        columns = f"id INTEGER PRIMARY KEY, v float[{DIM}] distance_metric=cosine"
        self.base.execute(f"CREATE VIRTUAL TABLE IF NOT EXISTS vectors USING vec0({columns})")

    def add(self, first: int, vectors: torch.Tensor) -> None:
        with self.base:
            rows = ((first + place, row.numpy().tobytes()) for place, row in enumerate(vectors))
            self.base.executemany("INSERT INTO vectors VALUES (?, ?)", rows)

    def finish(self) -> None:
        """All is on the disk."""

    def search(self, query: torch.Tensor) -> list[int]:
        asked = "SELECT id FROM vectors WHERE v MATCH ? AND k = ? ORDER BY distance"
        return [row[0] for row in self.base.execute(asked, (query.numpy().tobytes(), K))]

    def count(self) -> int:
        return int(self.base.execute("SELECT count(*) FROM vectors").get)


class FaissFile:
    """`faiss.IndexFlatIP`, written as one file."""

    name, package = "faiss flat file", "faiss"

    def __init__(self, folder: Path) -> None:
        import faiss

        self.faiss, self.path = faiss, folder / "index.faiss"
        self.index = faiss.read_index(str(self.path)) if self.path.exists() else faiss.IndexFlatIP(DIM)

    def add(self, first: int, vectors: torch.Tensor) -> None:
        self.index.add(vectors.numpy())

    def finish(self) -> None:
        self.faiss.write_index(self.index, str(self.path))

    def search(self, query: torch.Tensor) -> list[int]:
        ids: list[int] = self.index.search(query[None].numpy(), K)[1][0].tolist()
        return ids

    def count(self) -> int:
        return int(self.index.ntotal)


class LanceDB:
    """lancedb, a table without an index."""

    name, package = "lancedb", "lancedb"

    def __init__(self, folder: Path) -> None:
        import lancedb  # type: ignore[import-not-found]

        self.base: Any = lancedb.connect(str(folder / "lance"))
        self.table: Any = self.base.open_table("vectors") if (folder / "lance" / "vectors.lance").is_dir() else None

    def add(self, first: int, vectors: torch.Tensor) -> None:
        rows = [{"id": first + place, "vector": row.tolist()} for place, row in enumerate(vectors)]
        if self.table is None:
            self.table = self.base.create_table("vectors", rows)
        else:
            self.table.add(rows)

    def finish(self) -> None:
        """All is on the disk."""

    def search(self, query: torch.Tensor) -> list[int]:
        return [row["id"] for row in self.table.search(query.numpy()).metric("cosine").limit(K).to_list()]

    def count(self) -> int:
        return 0 if self.table is None else int(self.table.count_rows())


STORES: dict[str, Any] = {each.name: each for each in (SqliteVec, FaissFile, LanceDB)}


def fill(name: str, folder: Path, number: int) -> Any:
    """A store with that many vectors."""
    store, vectors = STORES[name](folder), vectors_of(number)
    for first in range(0, number, BATCH):
        store.add(first, vectors[first : first + BATCH])
        print(first + BATCH, flush=True) if os.environ.get("STORES_CHILD") else None
    store.finish()
    return store


def measure(name: str, number: int, queries: int) -> dict[str, Any]:
    """Insert, ask, weigh."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        begun = time.perf_counter()
        store = fill(name, folder, number)
        insert = time.perf_counter() - begun
        exact = ExactIndex(DIM, "cosine")
        exact.add(vectors_of(number))
        asked = vectors_of(queries, seed=1)
        right = exact.search(asked, K)[1].tolist()
        store.search(asked[0])
        taken, found = [], []
        for query in asked:
            begun = time.perf_counter()
            found.append(store.search(query))
            taken.append(time.perf_counter() - begun)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    recall = statistics.fmean(len(set(a) & set(b)) / K for a, b in zip(found, right, strict=True))
    return {"insert_seconds": insert, "query_seconds": statistics.median(taken), "bytes": size, "recall": recall}


def survives(name: str, number: int) -> dict[str, Any]:
    """Kill a process that fills a store when it has half; what the next one finds."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--fill", name, "--folder", place, "--sizes", str(number)]
        said = 0
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "STORES_CHILD": "1"}
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                said = int(line)
                if said >= number // 2:
                    child.send_signal(signal.SIGKILL)
                    break
        try:
            kept = STORES[name](Path(place)).count()
        except Exception as error:  # whatever a library says of a broken file
            return {"said": said, "kept": 0, "error": str(error)[:200]}
        return {"said": said, "kept": kept}


def main() -> None:
    """Parse, race, print, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--record", type=Path, help="append what was measured to this JSON file")
    parser.add_argument("--fill", choices=STORES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(*options.sizes, options.queries) < 1:
        parser.error("--sizes and --queries must be at least 1")
    torch.set_num_threads(1)
    if options.fill:
        fill(options.fill, options.folder, options.sizes[0])
        return
    rows: list[dict[str, Any]] = []
    for number in options.sizes:
        for name, kind in STORES.items():
            row: dict[str, Any] = {"store": name, "vectors": number}
            if importlib.util.find_spec(kind.package) is None:
                print(f"{number:>7,}  {name:16} not installed")
                rows.append({**row, "missing": "not installed"})
                continue
            row |= {**measure(name, number, options.queries), "killed": survives(name, number)}
            rows.append(row)
            killed = row["killed"]
            print(
                f"{number:>7,}  {name:16} insert {row['insert_seconds']:.2f} s, query "
                f"{row['query_seconds'] * 1e3:.2f} ms, {row['bytes'] / 1e6:.1f} MB, recall {row['recall']:.3f}, "
                f"killed at {killed['said']:,}: {killed['kept']:,} kept",
                flush=True,
            )
    if options.record:
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        head = {
            "date": date.today().isoformat(), "hardware": scale.hardware, "torch": torch.__version__,
            "command": f"uv run --with lancedb==0.40.0 python Module-10/race/stores.py --record {options.record}",
        }  # fmt: skip
        write_text(options.record, json.dumps([*old, {**head, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    main()
