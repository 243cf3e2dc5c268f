"""What the saved outputs of a notebook show: claims that held, and what they must not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from course.notebook.format import Notebook, first_code_line, runnable


def held_lines(cell: Any) -> int:
    """How many claims the saved output of a cell shows as held."""
    text = "".join(output.get("text", "") for output in cell.get("outputs", []) if output.output_type == "stream")
    return sum(line.startswith("holds") for line in text.split("\n"))


def problems(notebook: Notebook) -> list[str]:
    """What saved outputs must not hold: errors, warnings on stderr, machine paths; each with its cell."""
    found = []
    for index, cell in runnable(notebook):
        place = f"cell {index + 1} ({first_code_line(cell)[:60]})"
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                said = str(output.evalue).split("\n")[0]
                found.append(f"{place} ends in {output.ename}: {said}")
            elif output.get("name") == "stderr":
                first = next((line for line in output.text.split("\n") if line.strip()), "")
                found.append(f"{place} writes to stderr: {first[:160]}")
            for text in _texts(output):
                for path in machine_paths(text):
                    found.append(f"{place} shows a path of this machine: {path}")
    return found


_MACHINE = re.compile(
    r"(?<![\w.~>-])(?:/(?:home|Users|root|tmp|private/var|var/folders)/[^\s'\"<>]+|[A-Z]:\\Users\\\S+)"
)


def machine_paths(text: str) -> list[str]:
    """Absolute paths in a text that exist on one machine only."""
    return _MACHINE.findall(text)


def _texts(output: Any) -> Iterator[str]:
    if "text" in output:
        yield output.text
    for mime, value in output.get("data", {}).items():
        if mime.startswith("text/") and isinstance(value, str):
            yield value
