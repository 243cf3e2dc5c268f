"""The tables of a store, and what a file must say to be one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_data.text.search import shown

from llm_rag.folder.chunks import Chunking

APPLICATION_ID = 0x6C72_6167  # "lrag", in the file's header
VERSION = 1
WAIT_MS = 5000  # for another process's commit, which takes milliseconds
MAGIC = b"SQLite format 3\0"
# `remove_diacritics 0`: FTS5's words are then those of `words_of`.
TABLES = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, characters INTEGER NOT NULL);
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents(id), start INTEGER NOT NULL,
    stop INTEGER NOT NULL, text TEXT NOT NULL);
CREATE INDEX chunks_of_documents ON chunks(document);
CREATE VIRTUAL TABLE words USING fts5(
    text, content='chunks', content_rowid='id', tokenize='unicode61 remove_diacritics 0');
CREATE VIRTUAL TABLE vectors USING vec0(chunk INTEGER PRIMARY KEY, vector float[{dim}] distance_metric=cosine);
"""


class StoreError(ValueError):
    """A store that cannot be used as asked; the message is one line and says what to do."""


@dataclass(frozen=True)
class StoreSettings:
    """What a store was made with.

    Attributes:
        encoder: its name.
        dim: numbers of a vector.
        chunking: how documents are cut.
    """

    encoder: str
    dim: int
    chunking: Chunking


def connect(path: Path, create: bool) -> Any:
    """A connection with `sqlite-vec` loaded, to a file that is a store, or is not there yet.

    The rollback journal stays SQLite's default one. With it a store at rest is one file, which can be copied, lie on a
    read-only disk or in a network folder; a write-ahead log needs two more files and shared memory. The price is that a
    reader waits while a document is being committed, some milliseconds.

    Raises:
        StoreError: for what is no store, or one of another version.
        OSError: when the file cannot be opened.
    """
    import apsw
    import sqlite_vec  # type: ignore[import-untyped]

    refuse_other_files(path, create)
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    with told(path):
        connection = apsw.Connection(str(path), flags=flags)  # read-only by itself where the file is
        try:
            connection.enable_load_extension(True)
            connection.load_extension(sqlite_vec.loadable_path())
            connection.enable_load_extension(False)
            connection.set_busy_timeout(WAIT_MS)
            application, version = connection.pragma("application_id"), connection.pragma("user_version")
            has_tables = connection.execute("SELECT count(*) FROM sqlite_master").get > 0
            if (has_tables or not create) and application != APPLICATION_ID:
                raise StoreError(f"{shown(path)} is a database of another program; give another file")
            if has_tables and version != VERSION:
                raise StoreError(f"{shown(path)} has version {version}, and this is {VERSION}; index into a new file")
        except BaseException:
            connection.close(True)
            raise
    return connection


def refuse_other_files(path: Path, create: bool) -> None:
    """Raise a StoreError for what is there and cannot be a store, or is not there and must be."""
    name = shown(path)
    try:
        if path.is_dir():
            raise StoreError(f"{name} is a folder; give the file of a store, such as {name}/store.db")
        if not path.exists():
            if not create:
                raise StoreError(f"{name}: no such store; make it with `rag index FOLDER --store {name}`")
            if not path.parent.is_dir():
                raise StoreError(f"{name}: its folder is not there; make it, or give another path")
            return
        if not path.is_file():
            raise StoreError(f"{name} is no regular file; give the file of a store")
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise StoreError(f"{name}: cannot be read ({error.strerror}); give another file") from None
    if head != MAGIC and (head or not create):  # SQLite itself begins with an empty file
        raise StoreError(f"{name} is no store; give another file, or remove it and index again")


def make_tables(connection: Any, settings: StoreSettings) -> None:
    """All tables, or none, in one transaction."""
    with connection:
        connection.execute(TABLES.format(dim=settings.dim))
        facts = {
            "encoder": settings.encoder, "dim": settings.dim, "chunk_size": settings.chunking.size,
            "chunk_overlap": settings.chunking.overlap,
        }  # fmt: skip
        connection.executemany("INSERT INTO settings VALUES (?, ?)", facts.items())
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", VERSION)


def read_settings(connection: Any) -> StoreSettings | None:
    """What the store was made with; None for a file without tables."""
    if not connection.execute("SELECT count(*) FROM sqlite_master").get:
        return None
    facts = dict(connection.execute("SELECT key, value FROM settings"))
    return StoreSettings(facts["encoder"], facts["dim"], Chunking(facts["chunk_size"], facts["chunk_overlap"]))


@contextmanager
def told(path: Path) -> Iterator[None]:
    """SQLite's errors as one line that says what to do."""
    import apsw

    try:
        yield
    except (apsw.BusyError, apsw.LockedError):
        raise StoreError(f"{shown(path)} is being written by another process; try again when it has ended") from None
    except (apsw.NotADBError, apsw.CorruptError):
        raise StoreError(f"{shown(path)} is no store, or is damaged; remove it and index again") from None
    except apsw.FullError:
        raise StoreError(f"{shown(path)}: the disk is full; make room and go on with the same command") from None
    except apsw.ReadOnlyError:
        raise StoreError(f"{shown(path)} may not be written; give another file, or change who may write it") from None
    except (apsw.CantOpenError, apsw.IOError, apsw.PermissionsError) as error:
        raise StoreError(f"{shown(path)} cannot be opened ({error}); give another file") from None
