"""What every notebook shares: `from course import check, scale`.

A file of the course is `find_root() / "docs/results/..."`, whatever folder the notebook runs in.
Names are loaded on first use, so that the command line starts without importing torch.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from course import check, plots, progress
    from course.hardware import Scale
    from course.plan.curriculum import find_root

    scale: Scale

# tqdm, which Lightning brings, asks for ipywidgets. The course leaves them out: they stall runs without a browser.
warnings.filterwarnings("ignore", message="IProgress not found")

__all__ = ["check", "find_root", "plots", "progress", "scale"]


def __getattr__(name: str) -> Any:
    if name == "scale":
        from course.hardware import detect

        value: Any = detect()
    elif name == "find_root":
        from course.plan.curriculum import find_root as value
    elif name in __all__:
        value = importlib.import_module(f"course.{name}")
    else:
        raise AttributeError(f"module 'course' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value
