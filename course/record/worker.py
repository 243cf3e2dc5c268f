"""The process that measures: one for all sections, so that torch is imported once; the command ends it if it hangs.

What it says goes to standard output, a JSON object a line: {"begin": name}, {"row": {...}}, {"end": name, "missing":
why or ""}. Whatever a section prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from course.errors import traceback_wanted
from course.plan.curriculum import Curriculum, load
from course.record.setting import Setting


def main(arguments: list[str]) -> None:
    """Measure the sections named, in that order."""
    root, toy, options, *names = arguments
    said = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        said.write(json.dumps(message) + "\n")

    curriculum = load(Path(root))
    paths(curriculum)
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting(device, toy == "toy", json.loads(options))
    sections = {section.name: section for section in curriculum.records}
    for name in names:
        say(begin=name)
        say(end=name, missing=_measure(sections[name].function, setting, say))


def paths(curriculum: Curriculum) -> None:
    """Let the helper packages be imported from a checkout that is not installed."""
    for module in curriculum.modules:
        folder = str(curriculum.root / module.folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _measure(function: str, setting: Setting, say: Any) -> str:
    """Run one section; returns why it ended early, or nothing."""
    module, _, name = function.partition(":")
    try:
        rows: Iterable[dict[str, Any]] = getattr(importlib.import_module(module), name)(setting)
        for row in rows:
            say(row=row)
    except ModuleNotFoundError as error:
        return f"needs the package {error.name}"
    except Exception as error:  # the other sections are worth their time all the same
        if traceback_wanted():
            traceback.print_exc()
        first = str(error).strip().split("\n")[0]
        return f"{type(error).__name__}: {first}"[:300]
    return ""


if __name__ == "__main__":
    main(sys.argv[1:])
