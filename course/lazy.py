"""What a package gives away, each name loaded when it is first asked for: a command starts without importing torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def export(package: str, names: Mapping[str, str]) -> None:
    """Let `from package import name` load the name from its module.

    Args:
        package: its `__name__`; called from its `__init__`.
        names: each name with the module it lies in, relative to the package. A name that is a module's too, as
            `generate` in `generate.py`, means what lies in it.
    """

    class Package(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in names:
                given = ", ".join(sorted(names))
                raise AttributeError(f"module {package!r} has no attribute {name!r}; it gives {given}, and its modules")
            value = getattr(importlib.import_module(f"{package}.{names[name]}"), name)
            super().__setattr__(name, value)
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # Python sets a module as an attribute of its package once it is imported.
            if isinstance(value, ModuleType) and names.get(name) == name:
                value = getattr(value, name)
            super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *names})

    sys.modules[package].__class__ = Package
