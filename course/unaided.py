"""An exercise solved without the library's piece: inside `unaided`, calling it is an error that says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def unaided(*names: str) -> Iterator[None]:
    """Within the block, whoever calls one of these functions or classes is told to build it.

    They are replaced where they are defined to be found ("torch.optim.AdamW", "torch.Tensor.softmax") and, for those
    who imported one by its name, among the globals of the notebook. Everything is put back at the end.

    Args:
        names: dotted names, from the module on.

    Raises:
        AssertionError: inside the block, when one is called.
        ValueError: for a name that there is none of; a check that forbids nothing would forbid it in silence.
    """
    found = [(name, *_owner(name)) for name in names]
    stand_ins = {id(getattr(owner, last)): _stand_in(name) for name, owner, last in found}
    originals = [(owner, last, getattr(owner, last)) for _, owner, last in found]
    globals_ = sys._getframe(2).f_globals
    imported = {name: value for name, value in globals_.items() if id(value) in stand_ins}
    for owner, last, value in originals:
        setattr(owner, last, stand_ins[id(value)])
    globals_.update({name: stand_ins[id(value)] for name, value in imported.items()})
    try:
        yield
    finally:
        for owner, last, value in originals:
            setattr(owner, last, value)
        globals_.update(imported)


def _owner(name: str) -> tuple[Any, str]:
    """The module or class that holds a name, and the name's last part."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:-1]:
            owner = getattr(owner, part, None)
        if hasattr(owner, parts[-1]):
            return owner, parts[-1]
        break
    raise ValueError(f"unaided: there is no {name!r}")


def _stand_in(name: str) -> type:
    """What raises when it is called; a class, so that `isinstance` goes on."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError(f"this calls {name}: write what it does yourself, the exercise is about it")

    return type("BuildIt", (), {"__new__": refuse})
