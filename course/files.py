"""Files that are written whole or not at all, and locks that end with their process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class Busy(Exception):
    """Another process holds the lock."""


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place, see it on the disk, and move it there in one step: no half of it is ever under
    its name, also when the disk fills up, the process is killed, or the power fails.

    Args:
        path: where the file belongs; its folder is made where it is missing.
        write: writes the file to the path that it is given.

    Raises:
        OSError: naming `path`. Its old content is whole then, and nothing is left beside it; so with every error.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not the whole name: with an addition it could be longer than a file system takes.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        os.close(handle)
        unfinished = Path(name)
        try:
            write(unfinished)
            sync(unfinished)
            # mkstemp gives the owner alone access; a file of the course is as readable as its neighbours.
            unfinished.chmod(path.stat().st_mode if path.exists() else 0o644)
            unfinished.replace(path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise
    except OSError as error:  # a reader knows the file, not the temporary one
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """`write_whole` for a text, in UTF-8 and with "\\n" at each line's end."""
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8", newline="\n"))


def sync(path: Path) -> None:
    """Have a file's bytes on the disk: its name must not come to stand for some that a power cut takes away."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock, which is a file. The system releases it when the process ends, however that happens.

    Args:
        path: of the file; its folder is made where it is missing.
        wait: for another process that holds it.

    Raises:
        Busy: when another process holds it, and nobody waits.
        OSError: when the file cannot be made.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise Busy(str(path)) from None
    try:
        yield
    finally:
        lock.release()
