"""What a lesson's kernels need to be defined, not run, where Triton is not: it is made for Linux only."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


def _jit(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return (lambda found: found) if function is None else function


triton = SimpleNamespace(jit=_jit)
tl = SimpleNamespace(constexpr=int)
kernel = store_tile = WIDEN = LOG2E = None
