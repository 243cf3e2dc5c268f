"""`course status`: what this reader has run, when, and which exercises are solved. Nothing is executed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from course.author import exercises
from course.errors import CourseError
from course.notebook.format import Notebook, code_sha256, read
from course.notebook.outputs import held_lines
from course.plan.curriculum import Curriculum, Lesson
from course.run import history


@dataclass(frozen=True)
class Row:
    """One lesson.

    Attributes:
        lesson: its name with its folder.
        run: when and how it was run last, or "not run".
        claims: that held in that run; None where it was not run.
        changed: whether the code is another than the one that ran.
        solved, exercises: of its exercises.
        unreadable: why its exercises cannot be read, where they cannot.
    """

    lesson: str
    run: str
    claims: int | None
    changed: bool
    solved: int
    exercises: int
    unreadable: str = ""

    @property
    def cells(self) -> list[str]:
        """The row as text."""
        claims = "" if self.claims is None else str(self.claims)
        solved = f"{self.solved} of {self.exercises}" if self.exercises else ""
        solved = "; ".join(text for text in (solved, self.unreadable) if text)
        return [self.lesson, self.run + (", changed since" if self.changed else ""), claims, solved]


def rows(curriculum: Curriculum, output: Path) -> list[Row]:
    """A row for each lesson that exists."""
    last = history.load(output)
    return [_row(curriculum, lesson, last) for lesson in curriculum.lessons if curriculum.done(lesson)]


def main(curriculum: Curriculum, output: Path) -> int:
    """Print the table; returns 0."""
    table = [["lesson", "last run", "claims held", "exercises solved"]]
    found = rows(curriculum, output)
    table += [row.cells for row in found]
    widths = [max(len(cells[column]) for cells in table) for column in range(4)]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    done = sum(row.claims is not None for row in found)
    solved, count = sum(row.solved for row in found), sum(row.exercises for row in found)
    print(f"\n{done} of {len(found)} lessons run, {solved} of {count} exercises solved")
    return 0


def _row(curriculum: Curriculum, lesson: Lesson, last: history.History) -> Row:
    root = curriculum.root
    record = last.notebooks.get(lesson.path)
    run, claims, changed = "not run", None, False
    try:
        notebook = read(root / lesson.path, lesson.path)
    except CourseError as error:
        return Row(lesson.path, str(error).removeprefix(f"{lesson.path}: ").split(":")[0], None, False, 0, 0)
    when = ""
    if record is not None:
        when = record.finished
        run = f"{when[:16].replace('T', ' ')}" + ("" if record.ok else " (failed)")
        claims, changed = record.held, record.code_sha256 != code_sha256(notebook)
    saved = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime((root / lesson.path).stat().st_mtime))
    if saved_by_reader(notebook) and saved > when:
        run, changed = f"{saved[:16].replace('T', ' ')} in JupyterLab", False
        claims = sum(held_lines(cell) for cell in notebook.cells)
    solved = count = 0
    unreadable = ""
    for solution in lesson.solutions(root):
        path = exercises.exercises_path(solution)
        if (root / path).is_file():
            try:
                reader = read(root / path, path)
            except CourseError as error:
                unreadable = str(error)
                continue
            count += len(exercises.checks(reader))
            ran = last.notebooks.get(path)
            # A run of other code than the file holds now says nothing about it.
            in_run = ran.solved if ran is not None and ran.code_sha256 == code_sha256(reader) else 0
            solved += max(exercises.solved(reader), in_run)
    return Row(lesson.path, run, claims, changed, solved, count, unreadable)


def saved_by_reader(notebook: Notebook) -> bool:
    """Whether JupyterLab saved it after a run: it notes its Python version, which a built file lacks."""
    return "version" in notebook.metadata.get("language_info", {})
