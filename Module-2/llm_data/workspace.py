"""Where the course keeps what it made and may need again: tokenisers, token shards, the functions of the library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from course import files


def cache_folder() -> Path:
    """`COURSE_CACHE`, or `~/.cache/llm-course`. It may be deleted at any time: everything in it is made again.

    Raises:
        OSError: when the folder begins with `~` and this user has no home.
    """
    given = os.environ.get("COURSE_CACHE") or "~/.cache/llm-course"
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise OSError(f"{given}: this user has no home folder; set COURSE_CACHE to a folder for the cache") from None


def digest(*parts: Any) -> str:
    """16 hexadecimal digits that change with any of `parts` (compared by their `repr`)."""
    return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()[:16]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and be the only process that writes into it; another one waits.

    Raises:
        OSError: when the folder cannot be written, with what to do.
    """
    with ExitStack() as held:
        try:
            held.enter_context(files.locked(folder / "lock"))
        except OSError as error:
            raise OSError(
                f"{folder} cannot be written ({error.strerror or error}); set COURSE_CACHE, or pass `cache`, to a "
                "folder that you may write to"
            ) from None
        yield
