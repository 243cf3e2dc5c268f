"""Folders that a kernel works with: those that a user names by environment variables, and its temporary one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

NAMES = ("COURSE_DATA", "COURSE_CACHE")
PREFIX = "course-"


def absolute_folders(env: Mapping[str, str]) -> dict[str, str]:
    """Those of `NAMES` that are set, as absolute paths: relative ones mean another folder inside a notebook."""
    return {name: os.path.abspath(os.path.expanduser(env[name])) for name in NAMES if env.get(name)}


@contextmanager
def temporary_folder() -> Iterator[dict[str, str]]:
    """A kernel's own temporary folder, as its `TMPDIR`: one that is ended cannot clean up behind itself."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        yield {"TMPDIR": folder}
