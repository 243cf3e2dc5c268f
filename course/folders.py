"""Folders that a user names by environment variables, for a kernel that works in another folder."""

from __future__ import annotations

import os
from collections.abc import Mapping

NAMES = ("COURSE_DATA", "COURSE_CACHE")


def absolute_folders(env: Mapping[str, str]) -> dict[str, str]:
    """Those of `NAMES` that are set, as absolute paths: relative ones mean another folder inside a notebook."""
    return {name: os.path.abspath(os.path.expanduser(env[name])) for name in NAMES if env.get(name)}
