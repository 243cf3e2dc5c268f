"""A course of tiny notebooks, written to a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from course.plan.curriculum import Curriculum, load

PLAN = """
[[phase]]
number = 1
name = "Fundamentals"
weeks = [1, 2]
"""
MODULE = """
[[module]]
folder = "{folder}"
title = "{title}"
package = ""
goal = "A goal."
concepts = ["one", "two"]
prerequisites = ["Python"]
project = "A project."
"""
LESSON = """
[[module.lesson]]
name = "{name}"
week = {week}
question = "Why?"
needs = ["lesson 0"]
leaves = "something"
hardware = "any"
papers = ["A paper (2017)"]
"""


class TinyCourse:
    """Writes notebooks and the plan that holds them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lessons: dict[str, list[str]] = {}

    def lesson(self, name: str, *cells: Any, folder: str = "Module-1", week: int = 1) -> Path:
        """Plan a lesson; with cells, write its notebook too."""
        self.lessons.setdefault(folder, []).append(LESSON.format(name=name, week=week))
        self.write_plan()
        path = self.root / folder / "notebooks" / f"{name}.ipynb"
        if cells:
            write_notebook(path, *cells)
        return path

    def solution(self, name: str, *cells: Any, folder: str = "Module-1") -> Path:
        """Write a solution's notebook."""
        path = self.root / folder / "solutions" / f"{name}.ipynb"
        write_notebook(path, *cells)
        return path

    def write_plan(self, extra: str = "") -> None:
        """Write docs/curriculum.toml."""
        text = PLAN
        for folder, lessons in self.lessons.items():
            text += MODULE.format(folder=folder, title=folder.replace("-", " ")) + "".join(lessons)
        (self.root / "docs").mkdir(exist_ok=True)
        (self.root / "docs/curriculum.toml").write_text(text + extra)

    @property
    def plan(self) -> Curriculum:
        return load(self.root)


def write_notebook(path: Path, *cells: Any) -> None:
    """Write a notebook: a text is a code cell, a dict is a cell with `source` and, say, `tags` or `cell_type`."""
    made = []
    for number, cell in enumerate(cells):
        given = {"source": cell} if isinstance(cell, str) else dict(cell)
        metadata = {key: given.pop(key) for key in ("tags", "wrong") if key in given}
        kind = given.pop("cell_type", "code")
        code = {"outputs": [], "execution_count": None} if kind == "code" else {}
        made.append({"cell_type": kind, "id": f"cell{number}", "metadata": metadata, **code, **given})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
