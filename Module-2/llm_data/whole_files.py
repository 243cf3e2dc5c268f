"""Files that are whole or not there: written in one step, and known again by their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course.files import write_whole
from llm_data.errors import reason

CHECKSUM = "checksum"


def write_in_place(path: Path, write: Callable[[Path], Any]) -> None:
    """`course.files.write_whole`, with an error that says what to do.

    Args:
        path: where the file belongs.
        write: writes it to the path that it is given.

    Raises:
        OSError: when it cannot be written; nothing is left then.
    """
    try:
        write_whole(path, write)
    except OSError as error:
        wrong = f"{path} cannot be written ({reason(error)})"
        raise OSError(f"{wrong}; make room there, or choose another folder") from None


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write a JSON object with a checksum of itself. Raises as `write_in_place`."""
    text = json.dumps({**facts, CHECKSUM: _checksum_of(facts)}, indent=1)
    write_in_place(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def read_facts(path: Path) -> dict[str, Any] | None:
    """What `write_facts` wrote; None where there is no such file, or anything in it was changed."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = facts.pop(CHECKSUM)
        return facts if found == _checksum_of(facts) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def checksum(paths: tuple[Path, ...]) -> str:
    """sha256 of files, one after the other."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def seal(seal_path: Path, paths: list[Path]) -> None:
    """Write down the checksums of files that lie in one folder, as the last step of making them."""
    write_facts(seal_path, {path.name: checksum((path,)) for path in paths})


def is_sealed(seal_path: Path) -> bool:
    """Whether the files that a seal names are there, as they were when it was made."""
    facts = read_facts(seal_path) or {}
    try:
        return bool(facts) and all(checksum((seal_path.with_name(name),)) == value for name, value in facts.items())
    except OSError:
        return False


def _checksum_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
