"""What a section of records is given: the device, the size, and what the caller handed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """Where and how large a section measures.

    Attributes:
        device: "cuda" or "cpu".
        toy: sizes that a CPU runs in a second; they prove that the section runs, and are never kept as records.
        options: what `--option name=value` handed over.
    """

    device: str
    toy: bool
    options: Mapping[str, str] = field(default_factory=dict)

    def pick(self, *, full: T, toy: T) -> T:
        """The value for this size."""
        return toy if self.toy else full
