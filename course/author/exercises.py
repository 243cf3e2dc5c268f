"""The reader's copy of an exercise notebook, made from its solution.

In a code cell of `solutions/N_name.ipynb`, the lines between `# BEGIN SOLUTION` and `# END SOLUTION` become
one line that raises `NotImplementedError`. What stands behind BEGIN SOLUTION is its message. Cells tagged
`solution` are left out, and a cell tagged `exercise-check` is the check of one exercise.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from course.errors import NotebookError
from course.notebook.format import Notebook, code_sha256, first_code_line, tags
from course.notebook.normalise import normalise
from course.notebook.outputs import held_lines

CHECK = "exercise-check"
SOLUTION = "solution"
_MARK = re.compile(r"^(?P<indent>[ \t]*)#\s*(?P<kind>BEGIN|END) SOLUTION\b[ \t:]*(?P<text>.*?)\s*$")


def stub(source: str, place: str) -> str:
    """The source with each solution replaced.

    Raises:
        NotebookError: where a BEGIN has no END, or the other way round; `place` names the cell in the
            message.
    """
    lines: list[str] = []
    inside = False
    for number, line in enumerate(source.split("\n"), start=1):
        mark = _MARK.match(line)
        if mark is None:
            if re.search(r"#\s*(begin|end)\s+solution", line, re.IGNORECASE):
                raise NotebookError(
                    f"{place}, line {number}: a solution marker stands alone on its line: {line.strip()!r}"
                )
            if not inside:
                lines.append(line)
        elif (mark["kind"] == "BEGIN") == inside:
            other = "END SOLUTION before it" if inside else "BEGIN SOLUTION"
            raise NotebookError(f"{place}, line {number}: {mark['kind']} SOLUTION without {other}")
        elif mark["kind"] == "BEGIN":
            inside = True
            message = mark["text"].replace('"', "'") or "write your answer here"
            lines.append(f'{mark["indent"]}raise NotImplementedError("exercise: {message}")')
        else:
            inside = False
    if inside:
        raise NotebookError(f"{place}: BEGIN SOLUTION without END SOLUTION")
    return "\n".join(lines)


def exercises_path(solution: str) -> str:
    """Where the reader's copy of `MODULE/solutions/NAME.ipynb` lies: `MODULE/exercises/NAME.ipynb`."""
    module, _, name = solution.rpartition("/solutions/")
    return f"{module}/exercises/{name}"


def generate(solution: Notebook, path: str, root: Path) -> Notebook:
    """The reader's notebook: stubs for answers, no outputs, no cell tagged `solution`."""
    import copy

    notebook = copy.deepcopy(solution)
    notebook.cells = [cell for cell in notebook.cells if SOLUTION not in tags(cell)]
    for index, cell in enumerate(notebook.cells):
        cell.metadata.pop("wrong", None)
        if cell.cell_type == "code":
            place = f"{path}, cell {index + 1} ({first_code_line(cell)[:60]})"
            cell.source = stub(cell.source, place)
            cell.outputs = []
    made = normalise(notebook, root)
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
    made.metadata["course"] = {"code_sha256": code_sha256(made), "made_from": path}
    return made


def checks(notebook: Notebook) -> list[tuple[int, Any]]:
    """The check cells, one for each exercise, with their index."""
    return [(index, cell) for index, cell in enumerate(notebook.cells) if CHECK in tags(cell)]


def solved(notebook: Notebook) -> int:
    """How many exercises the saved outputs show as solved: a claim held in the check's cell, and no error."""
    return sum(
        held_lines(cell) > 0 and not any(output.output_type == "error" for output in cell.get("outputs", []))
        for _, cell in checks(notebook)
    )
