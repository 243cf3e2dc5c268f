"""Files of claims: one JSON record a line, as `course.check` appends them, read so that a damaged one costs itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

_TEXTS = ("detail", "bound", "unit", "hardware")
_NUMBERS = ("predicted", "measured", "difference")


@dataclass(frozen=True)
class Claims:
    """What a file of claims holds: the records that can be read, how many lines could not, and the records of what this
    machine cannot show."""

    records: list[dict[str, Any]]
    damaged: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def held(self) -> int:
        """How many of the claims held."""
        return sum(record["held"] for record in self.records)


def read(path: Path, start: int = 0) -> Claims:
    r"""Read the records of a file from the byte `start` on; none where there is no file.

    Lines end in "\n" alone: a claim's text may hold any other character that `str.splitlines` would cut at.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return Claims([])
    except OSError:  # a folder in its place, or no leave to read it: as good as one damaged record
        return Claims([], 1)
    return _records(line for line in lines if line.strip())


def _records(lines: Iterable[bytes]) -> Claims:
    made = Claims([])
    damaged = 0
    for line in lines:
        try:
            record = _record(line)
            (made.skipped if record["kind"] == "skipped" else made.records).append(record)
        except (ValueError, RecursionError):  # JSONDecodeError and UnicodeError are ValueErrors
            damaged += 1
    return replace(made, damaged=damaged)


def _record(line: bytes) -> dict[str, Any]:
    """One record with the keys that every reader uses.

    Raises:
        ValueError: when the line is no record of a claim.
    """
    raw = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    if not isinstance(raw, dict) or not isinstance(raw.get("held"), bool):
        raise ValueError("no claim")
    if not all(isinstance(raw.get(key), str) for key in ("notebook", "name", "kind")):
        raise ValueError("no name")
    for key in _TEXTS:
        if not isinstance(raw.setdefault(key, ""), str):
            raise ValueError(key)
    for key in _NUMBERS:
        value = raw.setdefault(key, None)
        if not (value is None or isinstance(value, (str, int, float))):
            raise ValueError(key)
        if isinstance(value, (int, float)) and not _finite(value):
            raise ValueError(key)
    json.dumps(raw, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair cannot be written again
    return raw


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
