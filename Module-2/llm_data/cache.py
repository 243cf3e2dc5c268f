"""Where the course keeps what it made and may need again: tokenisers, token shards, the functions of the library."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """`COURSE_CACHE`, or `~/.cache/llm-course`. It may be deleted at any time: everything in it is made again."""
    return Path(os.environ.get("COURSE_CACHE") or "~/.cache/llm-course").expanduser()


def digest(*parts: Any) -> str:
    """16 hexadecimal digits that change with any of `parts` (compared by their `repr`)."""
    return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()[:16]
