"""The first cell of every lesson, made from the plan and the records."""

from __future__ import annotations

from typing import Any

from course.author import exercises
from course.errors import NotebookError
from course.notebook.format import Notebook, read, tags
from course.plan import timings
from course.plan.curriculum import Curriculum, Lesson, link

TAG = "card"
WORDS_A_MINUTE = 150  # of a text with formulas; the code and what it prints are read beside it


def text(curriculum: Curriculum, lesson: Lesson, measured: dict[str, dict[str, Any]]) -> str:
    """The card's Markdown.

    Args:
        curriculum: the plan.
        lesson: the lesson whose card it is.
        measured: the records by scale.
    """
    module = curriculum.module_of(lesson)
    lines = [f"# {lesson.number}. {lesson.title}", ""]
    place = f"{module.title}, lesson {lesson.number} of {len(module.lessons)}"
    lessons = curriculum.lessons
    index = lessons.index(lesson)
    neighbours = [("previous", lessons[index - 1] if index else None)]
    neighbours.append(("next", lessons[index + 1] if index + 1 < len(lessons) else None))
    for word, other in neighbours:
        if other is not None:
            name = other.title
            if curriculum.done(other):
                name = f"[{name}]({link(other.path, lesson.path)})"
            place += f" · {word}: {name}" + ("" if curriculum.done(other) else " (planned)")
    lines += [place, ""]
    lines.append("| " + " | ".join(f"on {label}" for label in timings.SCALES.values()) + " |")
    lines.append("|" + "---|" * len(timings.SCALES))
    times = [timings.duration(timings.seconds(measured, scale, lesson.path)) for scale in timings.SCALES]
    lines += ["| " + " | ".join(times) + " |", ""]
    words = _words(curriculum, lesson)
    if words:
        lines.append(f"- To read: some {5 * max(1, round(words / WORDS_A_MINUTE / 5))} minutes ({words:,} words)")
    lines.append(f"- Needs: {', '.join(lesson.needs) if lesson.needs else 'nothing before it'}")
    lines.append(f"- Leaves: {lesson.leaves}")
    if lesson.hardware != "any":
        lines.append(f"- Hardware: {lesson.hardware}")
    for solution in lesson.solutions(curriculum.root):
        count = len(exercises.checks(read(curriculum.root / solution, solution)))
        target = link(exercises.exercises_path(solution), lesson.path)
        lines.append(
            f"- [{count} exercise{'s' * (count != 1)}]({target}), with [solutions]({link(solution, lesson.path)})"
        )
    recorded = [
        f"{timings.SCALES[scale]}: {measured[scale]['hardware']}"
        for scale in timings.SCALES
        if timings.seconds(measured, scale, lesson.path) is not None
    ]
    if recorded:
        lines.append(f"- Times recorded on {'; '.join(recorded)}")
    return "\n".join(lines)


def _words(curriculum: Curriculum, lesson: Lesson) -> int:
    """Words of a lesson's text, without its card, to the next hundred; 0 for one that is not written."""
    if not curriculum.done(lesson):
        return 0
    cells = read(curriculum.root / lesson.path, lesson.path).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown" and TAG not in tags(cell)]
    return 100 * round(sum(len(text.split()) for text in texts) / 100)


def put(notebook: Notebook, card: str, name: str) -> None:
    """Write the card into the notebook's first cell, a Markdown cell tagged `card`; make it if it is missing.

    Raises:
        NotebookError: when a cell further down carries the tag.
    """
    import nbformat

    for index, cell in enumerate(notebook.cells[1:], start=2):
        if TAG in tags(cell):
            raise NotebookError(f"{name}, cell {index}: only the first cell may be tagged {TAG!r}")
    first = notebook.cells[0] if notebook.cells else None
    if first is None or TAG not in tags(first) or first.cell_type != "markdown":
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(metadata={"tags": [TAG]}))
    notebook.cells[0].source = card


def get(notebook: Notebook) -> str | None:
    """The card's Markdown, None where the first cell is no card."""
    first = notebook.cells[0] if notebook.cells else None
    return first.source if first is not None and TAG in tags(first) and first.cell_type == "markdown" else None
