"""`course status`: what was run, by which of the two ways, and what changed since."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from tiny_course import TinyCourse

from course.author import build
from course.notebook import format as notebooks
from course.notebook import outputs
from course.run import history, status

Command = Callable[..., tuple[int, str, str]]
LESSON = "Module-1/notebooks/1_A.ipynb"
EXERCISES = "Module-1/exercises/1_A.ipynb"
HOLDS = {"output_type": "stream", "name": "stdout", "text": "holds  a: 1\nholds  b: 2\n"}
ERROR = {"output_type": "error", "ename": "AssertionError", "evalue": "FAILS", "traceback": []}


@pytest.fixture
def course(tiny: TinyCourse) -> TinyCourse:
    tiny.lesson("1_A", "x = 1")
    tiny.lesson("2_B", "x = 2")
    tiny.lesson("3_Later")
    check = {"source": "f()", "tags": ["exercise-check"]}
    tiny.solution("1_A", "def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION", check, check)
    build.tidy(tiny.plan, "Module-1/solutions/1_A.ipynb", io.StringIO())
    return tiny


def rows(course: TinyCourse) -> dict[str, status.Row]:
    return {row.lesson: row for row in status.rows(course.plan, course.root / history.OUTPUT)}


def remember(course: TinyCourse, path: str = LESSON, **values: Any) -> None:
    code = notebooks.code_sha256(notebooks.read(course.root / path))
    fields = {"ok": True, "code_sha256": code, "held": 5, "claims": 5, **values}
    record = history.Result(run="r", finished="2026-05-01T10:20:30", seconds=1.0, peak_memory_bytes=1, **fields)
    history.save(history.History("r", True, [path], {path: record}), course.root / history.OUTPUT)


def save_as_reader(path: Path, outputs: dict[int, list[Any]], when: float | None = None) -> None:
    """What JupyterLab does: outputs, and the kernel's language_info."""
    raw = json.loads(path.read_text())
    for index, output in outputs.items():
        raw["cells"][index]["outputs"] = output
    raw["metadata"]["language_info"] = {"name": "python", "version": "3.12.1"}
    path.write_text(json.dumps(raw))
    if when is not None:
        os.utime(path, (when, when))


def test_nothing_was_run(course: TinyCourse, command: Command) -> None:
    code, out, _ = command("status")
    assert code == 0
    assert out.splitlines()[1].split() == [LESSON, "not", "run", "0", "of", "2"]
    assert out.endswith("0 of 2 lessons run, 0 of 2 exercises solved\n")
    assert "3_Later" not in out and not (course.root / "runs").exists()


def test_run_by_the_command(course: TinyCourse) -> None:
    remember(course)
    row = rows(course)[LESSON]
    assert (row.run, row.claims, row.changed) == ("2026-05-01 10:20", 5, False)
    assert rows(course)["Module-1/notebooks/2_B.ipynb"].claims is None


def test_changed_since_and_failed(course: TinyCourse) -> None:
    remember(course, code_sha256="another", ok=False)
    row = rows(course)[LESSON]
    assert row.changed and row.cells[1] == "2026-05-01 10:20 (failed), changed since"


def test_run_in_jupyterlab(course: TinyCourse) -> None:
    remember(course)
    save_as_reader(course.root / LESSON, {0: [HOLDS]})
    row = rows(course)[LESSON]
    assert row.run.endswith(" in JupyterLab") and row.claims == 2
    # Saved before the last `course run`: that one counts.
    save_as_reader(course.root / LESSON, {}, when=1_000_000_000)
    assert rows(course)[LESSON].claims == 5


def test_a_built_lesson_was_not_run_by_the_reader(course: TinyCourse) -> None:
    notebook = notebooks.read(course.root / LESSON)
    notebook.cells[0].outputs = notebooks.read(course.root / LESSON).cells[0].outputs
    notebooks.write(build.normalise(notebook, course.root), course.root / LESSON)
    assert rows(course)[LESSON].run == "not run"


def test_exercises_solved(course: TinyCourse) -> None:
    path = course.root / EXERCISES
    assert (rows(course)[LESSON].solved, rows(course)[LESSON].exercises) == (0, 2)
    save_as_reader(path, {1: [HOLDS], 2: [ERROR]})
    assert rows(course)[LESSON].solved == 1
    save_as_reader(path, {1: [HOLDS, ERROR], 2: []})
    assert rows(course)[LESSON].solved == 0
    remember(course, EXERCISES, ok=False, solved=2, exercises=2)
    assert rows(course)[LESSON].solved == 2
    raw = json.loads(path.read_text())
    raw["cells"][0]["source"] = "changed = True"
    path.write_text(json.dumps(raw))
    assert rows(course)[LESSON].solved == 0  # that run was of other code


@pytest.mark.parametrize(
    "content", [b"<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> main\n", b"\xff\xfe{}", b"[" * 100_000, b"null", b""]
)
def test_unreadable_exercises_cost_their_own_row(course: TinyCourse, command: Command, content: bytes) -> None:
    before = rows(course)
    (course.root / EXERCISES).write_bytes(content)
    code, out, err = command("status")
    lines = out.splitlines()
    assert code == 0 and err == "" and len(lines) == 5
    assert lines[1].startswith(LESSON) and f"{EXERCISES}: not a notebook" in lines[1]
    after = rows(course)
    assert after["Module-1/notebooks/2_B.ipynb"] == before["Module-1/notebooks/2_B.ipynb"]
    assert after[LESSON].run == before[LESSON].run and after[LESSON].exercises == 0


def test_lines_of_an_output_end_where_the_notebook_ends_them() -> None:
    """A claim's name may hold what `str.splitlines` cuts at; "holds" behind it is no claim of its own."""
    for odd in "\f\x0b\x1c\x85\u2028\u2029\r":
        text = f"holds  a{odd}holds  b: 1\nholds  c\n"
        assert outputs.held_lines(nbformat.from_dict({"outputs": [{"output_type": "stream", "text": text}]})) == 2


def test_an_unreadable_lesson_is_a_row(course: TinyCourse, command: Command) -> None:
    (course.root / LESSON).write_text("{nope")
    code, out, _ = command("status")
    assert code == 0 and "not a notebook" in out.splitlines()[1]
