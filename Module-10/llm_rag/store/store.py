"""A store: documents, passages, their words and vectors in one SQLite file, by apsw, FTS5 and sqlite-vec.

All that changes for one document is one transaction: whatever stops the process, a document is whole or absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from jaxtyping import Float
from llm_data.text.search import shown
from llm_data.tokenizers.pretokenize import refuse_surrogates
from torch import Tensor

from course.files import Busy, locked
from llm_rag.encoders.encoder import Encoder
from llm_rag.folder.chunks import Chunk, Chunking, chunks_of
from llm_rag.folder.documents import Document
from llm_rag.search.bm25 import words_of
from llm_rag.search.fusion import reciprocal_rank_fusion
from llm_rag.search.vectors import prepared
from llm_rag.store.schema import StoreError, StoreSettings, connect, make_tables, read_settings, told

Method = Literal["words", "vectors", "hybrid"]
METHODS: tuple[Method, ...] = ("words", "vectors", "hybrid")
MOST = 4096  # sqlite-vec gives no more
DEPTH = 50  # of each ranking that is fused
CHUNKS = "SELECT path, start, stop, text FROM chunks JOIN documents ON documents.id = document "
MOST_WORDS = 256  # of a question: FTS5 parses an expression of each


@dataclass(frozen=True)
class Passage:
    """A passage that a search found.

    Attributes:
        chunk: its place and text.
        score: BM25's, a cosine, or the fused one; the larger the better.
        id: in the store.
    """

    chunk: Chunk
    score: float
    id: int


class Store:
    """Use it as a context manager.

    Args:
        path: of the file.
        encoder: of passages and questions; None to search by words alone, or to look at a store that is there.
        chunking: how documents are cut; that of a store that is there if None.
        write: be the one process that changes it; makes the file where it is missing.

    Raises:
        StoreError: for what is no store, for one that was made with another encoder or other sizes, when another
            process writes, and for a new one without an encoder.
    """

    def __init__(
        self, path: Path | str, encoder: Encoder | None = None, chunking: Chunking | None = None, write: bool = False
    ) -> None:
        self.path, self.encoder = Path(path).expanduser().absolute(), encoder
        self._open = ExitStack()
        with self._open:
            if write:
                self._lock()
            self.connection: Any = connect(self.path, create=write)
            self._open.callback(self.connection.close)
            with told(self.path):
                found = read_settings(self.connection)
                if found is None:
                    found = self._made(chunking or Chunking())
            self.settings: StoreSettings = found
            self._refuse_other_settings(chunking)
            self._open = self._open.pop_all()

    def _lock(self) -> None:
        if not self.path.parent.is_dir():
            raise StoreError(f"{shown(self.path)}: its folder is not there; make it, or give another path")
        try:
            # The name begins with a dot: a folder that holds its own store does not count it among its documents.
            lock = self.path.with_name(f".{self.path.name[:200]}.lock")
            self._open.enter_context(locked(lock, wait=False))
        except Busy:
            wrong = f"{shown(self.path)} is being written by another process"
            raise StoreError(f"{wrong}; try again when it has ended") from None

    def _made(self, chunking: Chunking) -> StoreSettings:
        if self.encoder is None:
            raise StoreError(f"{shown(self.path)} is empty, and a new store needs an encoder")
        settings = StoreSettings(self.encoder.name, self.encoder.dim, chunking)
        make_tables(self.connection, settings)
        return settings

    def _refuse_other_settings(self, chunking: Chunking | None) -> None:
        asked = self.settings if chunking is None else replace(self.settings, chunking=chunking)
        if self.encoder is not None:
            asked = replace(asked, encoder=self.encoder.name, dim=self.encoder.dim)
        for name in ("encoder", "dim", "chunking"):
            has, wants = getattr(self.settings, name), getattr(asked, name)
            if has != wants:
                wrong = f"{shown(self.path)} was made with {name}={has}, and {name}={wants} is asked for"
                raise StoreError(f"{wrong}; ask for the same, or index into a new file")

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and end the lock."""
        self._open.close()

    def documents(self) -> dict[str, str]:
        """sha256 of each document that is in, by its path."""
        with told(self.path):
            return dict(self.connection.execute("SELECT path, sha256 FROM documents ORDER BY path"))

    def __len__(self) -> int:
        """Passages."""
        with told(self.path):
            return int(self.connection.execute("SELECT count(*) FROM chunks").get)

    def chunks(self, path: str | None = None) -> Iterator[Chunk]:
        """All passages, or those of one document, in order."""
        with told(self.path):
            where, values = ("WHERE path = ? ", (path,)) if path is not None else ("", ())
            for row in self.connection.execute(f"{CHUNKS}{where}ORDER BY path, start", values):
                yield Chunk(*row)

    def add(self, document: Document) -> int:
        """Put a document in, in the place of the one with its path; returns its number of passages.

        Raises:
            StoreError: when it cannot be written; the store is as before then.
            ValueError: for a vector that is not finite or zero.
        """
        chunks = list(chunks_of(document.text, document.path, self.settings.chunking))
        self._needs_encoder()
        vectors = self._vectors([chunk.text for chunk in chunks])
        with told(self.path), self.connection:
            self._remove(document.path)
            values = (document.path, document.sha256, len(document.text))
            asked = "INSERT INTO documents(path, sha256, characters) VALUES (?, ?, ?) RETURNING id"
            owner = self.connection.execute(asked, values).get
            for chunk, vector in zip(chunks, vectors, strict=True):
                asked = "INSERT INTO chunks(document, start, stop, text) VALUES (?, ?, ?, ?) RETURNING id"
                number = self.connection.execute(asked, (owner, chunk.start, chunk.stop, chunk.text)).get
                self.connection.execute("INSERT INTO words(rowid, text) VALUES (?, ?)", (number, chunk.text))
                self.connection.execute("INSERT INTO vectors VALUES (?, ?)", (number, vector))
        return len(chunks)

    def remove(self, path: str) -> bool:
        """Take a document out; whether it was in."""
        with told(self.path), self.connection:
            return self._remove(path)

    def move(self, old: str, new: str) -> None:
        """Give a document another path; nothing is encoded.

        Raises:
            StoreError: when it is not there, or the new path is taken.
        """
        there = self.documents()
        if old not in there or new in there:
            raise StoreError(f"{old} cannot become {new}: the first must be in the store, and the second not")
        with told(self.path), self.connection:
            self.connection.execute("UPDATE documents SET path = ? WHERE path = ?", (new, old))

    def _remove(self, path: str) -> bool:
        owner = self.connection.execute("SELECT id FROM documents WHERE path = ?", (path,)).get
        if owner is None:
            return False
        for number, text in self.connection.execute(
            "SELECT id, text FROM chunks WHERE document = ?", (owner,)
        ).fetchall():
            # FTS5 keeps no text of its own here: it must be told which words to take out.
            self.connection.execute("INSERT INTO words(words, rowid, text) VALUES ('delete', ?, ?)", (number, text))
            self.connection.execute("DELETE FROM vectors WHERE chunk = ?", (number,))
        self.connection.execute("DELETE FROM chunks WHERE document = ?", (owner,))
        self.connection.execute("DELETE FROM documents WHERE id = ?", (owner,))
        return True

    def search_words(self, question: str, k: int) -> list[Passage]:
        """The best k by BM25, as FTS5 has it; none for a question without a word of the store. See `words_of`."""
        words = words_of(question)[:MOST_WORDS]
        if not words:
            _at_least_one(k)
            return []
        # Each word in quotes: `"`, `*`, NEAR or OR in a question are words or nothing, never the query language.
        query = " OR ".join(f'"{word}"' for word in words)
        return self._rows("SELECT rowid, -bm25(words) AS score FROM words WHERE words MATCH ? "
                          "ORDER BY score DESC, rowid LIMIT ?", (query, _at_least_one(k)))  # fmt: skip

    def search_vectors(self, question: str, k: int) -> list[Passage]:
        """The k whose vectors have the largest cosine with the question's, among all: sqlite-vec compares each.

        Raises:
            StoreError: without an encoder.
            ValueError: for k below 1 or above 4,096.
        """
        if _at_least_one(k) > MOST:
            raise ValueError(f"k={k} is above {MOST:,}, the most that sqlite-vec gives; lower it")
        self._needs_encoder()
        refuse_surrogates(question)
        (vector,) = self._vectors([question])
        asked = "SELECT chunk, 1 - distance FROM vectors WHERE vector MATCH ? AND k = ? ORDER BY distance"
        return sorted(self._rows(asked, (vector, k)), key=lambda passage: (-passage.score, passage.id))

    def hybrid(self, question: str, k: int, depth: int = DEPTH) -> list[Passage]:
        """The best k of both rankings, fused by their ranks.

        Args:
            question: in words.
            k: passages.
            depth: of each ranking that is looked at.
        """
        depth = min(MOST, max(_at_least_one(k), depth))
        rankings = [self.search_words(question, depth), self.search_vectors(question, depth)]
        by_id = {passage.id: passage for ranking in rankings for passage in ranking}
        fused = reciprocal_rank_fusion([[passage.id for passage in ranking] for ranking in rankings])
        return [replace(by_id[number], score=score) for number, score in fused[:k]]

    def search(self, question: str, k: int, method: str = "hybrid") -> list[Passage]:
        """The best k by a method of `METHODS`.

        Raises:
            ValueError: for an unknown method, and as the three.
        """
        methods = {"words": self.search_words, "vectors": self.search_vectors, "hybrid": self.hybrid}
        if method not in methods:
            raise ValueError(f"method={method!r} is none of {', '.join(METHODS)}")
        return methods[method](question, k)

    def check(self) -> None:
        """Raise a StoreError unless the file is whole, and each passage has its words and its vector."""
        with told(self.path):
            said = self.connection.execute("PRAGMA integrity_check").get
            self.connection.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")
            chunks, vectors = (
                set(row[0] for row in self.connection.execute(asked))
                for asked in ("SELECT id FROM chunks", "SELECT chunk FROM vectors")
            )
            orphans = self.connection.execute(
                "SELECT count(*) FROM chunks WHERE document NOT IN (SELECT id FROM documents)"
            ).get
        if said != "ok" or chunks != vectors or orphans:
            raise StoreError(f"{shown(self.path)} is damaged ({said}); remove it and index again")

    def _rows(self, asked: str, values: Sequence[Any]) -> list[Passage]:
        with told(self.path):
            found = self.connection.execute(asked, values).fetchall()
            passages = []
            for number, score in found:
                row = self.connection.execute(f"{CHUNKS}WHERE chunks.id = ?", (number,)).fetchone()
                if row is not None:  # taken out between the two questions
                    passages.append(Passage(Chunk(*row), float(score), number))
        return passages

    def _needs_encoder(self) -> None:
        if self.encoder is None:
            wrong = f"{shown(self.path)} was opened without an encoder"
            raise StoreError(f"{wrong}; give {self.settings.encoder}, or search by words alone")

    def _vectors(self, texts: list[str]) -> list[bytes]:
        assert self.encoder is not None
        if not texts:
            return []
        vectors: Float[Tensor, "texts dim"] = prepared(self.encoder.encode(texts), "cosine", self.settings.dim)
        return [vector.numpy().astype("<f4").tobytes() for vector in vectors]


def _at_least_one(k: int) -> int:
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    return k
