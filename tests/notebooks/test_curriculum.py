"""The curriculum as a whole: nothing is stale, every exercise has an honest check, the documents tell the truth.

Lessons are executed by nbmake. Solutions are executed here, each with the stubs and the wrong answers of its exercises.
"""

from __future__ import annotations

import asyncio
import copy
import re
from pathlib import Path
from typing import Any

import markdown_links
import nbformat
import pytest

from course.author import build, card, documents, exercises
from course.engine import pytest_plugin
from course.engine.execute import environment, execute
from course.notebook import format as notebooks
from course.notebook import outputs
from course.plan import timings
from course.plan.curriculum import find_root, load
from course.run import selection

ROOT = find_root(Path(__file__).parent)
PLAN = load(ROOT)
EVERY = selection.every_notebook(PLAN)
LESSONS = [path for path in EVERY if "/notebooks/" in path]
SOLUTIONS = [path for path in EVERY if "/solutions/" in path]
EXERCISES = [path for path in EVERY if "/exercises/" in path]

# Claims are counted of the solution as it stands, and of nothing that is tried afterwards.
NOT_COUNTED = "import os; os.environ.pop('COURSE_CLAIMS', None)"
# Wrong answers are tried in the solution's own kernel, and what they bind is undone after each. So is, before the next
# exercise, what an exercise binds: each has the cells before the first one, and no more.
KEEP = "{kept} = {{name: value for name, value in globals().items() if not name.startswith('_')}}"
UNDO = """\
for _course_name in [name for name in globals() if not name.startswith('_') and name not in {kept}]:
    del globals()[_course_name]
globals().update({kept})"""


def read(path: str) -> Any:
    return notebooks.read(ROOT / path, path)


def run(notebook: Any, path: str, claims: Path) -> None:
    """Execute in place, past errors."""
    # As long as nbmake's limit: the first notebook of Module 3 that a machine runs trains the small model.
    asyncio.run(execute(notebook, (ROOT / path).parent, environment(path, claims), timeout=300, keep_going=True))


def error(cell: Any) -> Any:
    """The error output of a cell, or None."""
    return next((output for output in cell.outputs if output.output_type == "error"), None)


def test_no_notebook_is_outside_the_plan() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("notebooks", "solutions", "exercises")
        for path in ROOT.glob(f"*/{folder}/*.ipynb")
    }
    assert found == set(EVERY)


@pytest.mark.parametrize("path", LESSONS + SOLUTIONS)
def test_nothing_is_stale(path: str) -> None:
    found = [str(item) for item in build.stale(PLAN, path)]
    assert not found, "\n".join([*found, "`course build` mends it; a solved exercise is kept by copying it elsewhere"])


@pytest.mark.parametrize("path", LESSONS + SOLUTIONS)
def test_outputs_are_of_one_clean_run(path: str) -> None:
    notebook = read(path)
    assert notebook.metadata["course"]["code_sha256"] == notebooks.code_sha256(notebook)
    counts = [cell.execution_count for _, cell in notebooks.runnable(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert outputs.problems(notebook) == []
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("path", LESSONS)
def test_a_lesson_begins_with_its_card(path: str) -> None:
    lesson = PLAN.lesson_at(path)
    assert lesson is not None
    assert card.get(read(path)) == card.text(PLAN, lesson, timings.load(ROOT))


@pytest.mark.parametrize("path", EVERY)
def test_links_lead_somewhere(path: str) -> None:
    assert markdown_links.broken(ROOT / path, ROOT) == []


@pytest.mark.parametrize(
    "topic",
    [
        "DeepSpeed", "ZeRO", "vLLM", "TensorRT-LLM", "FP8", "GPTQ", "AWQ", "13B", "34B", "reward model", "PPO", "DPO",
        "scaling laws", "LoRA", "QLoRA", "FSDP", "mixture of experts", "retrieval",
    ],
)  # fmt: skip
def test_each_topic_of_the_twenty_weeks_has_a_lesson(topic: str) -> None:
    told = [
        " ".join([module.title, *module.concepts, lesson.name, lesson.question, lesson.leaves]).lower()
        for module in PLAN.modules
        for lesson in module.lessons
    ]
    assert any(topic.lower() in text for text in told)


def test_documents_are_fresh() -> None:
    assert documents.stale(PLAN) == []


@pytest.mark.parametrize("path", EXERCISES)
def test_exercises_hold_no_answer(path: str) -> None:
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "SOLUTION" not in text
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert all(
        "wrong" not in cell.metadata and exercises.SOLUTION not in notebooks.tags(cell) for cell in notebook.cells
    )
    inside, outside = set(), set()
    for cell in read(path.replace("/exercises/", "/solutions/")).cells:
        answering = False
        for line in cell.source.split("\n"):
            if re.search(r"# (BEGIN|END) SOLUTION", line):
                answering = "BEGIN" in line
            elif exercises.SOLUTION not in notebooks.tags(cell):
                (inside if answering else outside).add(line.strip())
    # Short lines (`return x`) say nothing; a line that the reader is given is no leak.
    leaked = [line for line in inside - outside if len(line) >= 15 and line in text]
    assert leaked == []


def parted(notebook: Any) -> tuple[list[Any], list[list[Any]]]:
    """The cells before the first exercise, and those of each; an exercise begins with a heading `## N. Title`."""
    parts: list[list[Any]] = [[]]
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.match(r"## \d+\. ", cell.source):
            parts.append([])
        parts[-1].append(cell)
    return parts[0], parts[1:]


def code_cell(source: str) -> Any:
    return nbformat.v4.new_code_cell(source)


@pytest.mark.parametrize("path", SOLUTIONS)
def test_a_solution_is_green_and_an_empty_or_wrong_answer_is_red(path: str, request: pytest.FixtureRequest) -> None:
    """The solution from its first cell to its last, as a reader runs it. Then each exercise as the reader gets it, and
    the right answer with each wrong one tried in its place.

    All in one kernel: to start one takes as long as most exercises do.
    """
    notebook, stubs = read(path), read(path.replace("/solutions/", "/exercises/"))
    cells, answered = parted(notebook)
    _, empty = parted(stubs)
    assert len(answered) == len(empty) == len(exercises.checks(notebook)), "each exercise begins with `## N. Title`"
    whole = copy.deepcopy([cell for part in answered for cell in part])
    for cell in whole:
        cell.id = f"whole-{cell.id}"
    cells = [*cells, code_cell(KEEP.format(kept="_course_setup")), *whole]
    cells += [code_cell(NOT_COUNTED), code_cell(UNDO.format(kept="_course_setup"))]
    keep, undo = KEEP.format(kept="_course_kept"), UNDO.format(kept="_course_kept")
    tried: list[tuple[str, Any, Any]] = []
    for given, part in zip(empty, answered, strict=True):
        for cell in given:
            cell.id = f"empty-{cell.id}"  # beside a cell of the solution that says the same
        cells += [*given, code_cell(UNDO.format(kept="_course_setup"))]
        for cell in part:
            if exercises.CHECK not in notebooks.tags(cell):
                cells.append(cell)  # the right answer; its check was green above
                continue
            wrong = cell.metadata.get("wrong")
            assert wrong, f"its metadata has no wrong answer to try: {cell.source}"
            for code in [wrong] if isinstance(wrong, str) else wrong:
                answer, again = code_cell(f"{keep}\n{code}"), code_cell(cell.source)
                cells += [answer, again, code_cell(undo)]
                tried.append((code, answer, again))
        cells.append(code_cell(UNDO.format(kept="_course_setup")))
    notebook.cells = cells
    run(notebook, path, pytest_plugin.claims_file(request.config))
    for given in empty:
        is_said_to_be_empty(given)
    for code, answer, again in tried:
        assert error(answer) is None, f"the wrong answer itself fails: {code}\n{error(answer).evalue}"
        found = error(again)
        assert found is not None, f"the check is green for the wrong answer: {code}"
        assert found.ename == "AssertionError", f"{found.ename}, not a check, says no to {code}: {found.evalue}"
    expected = {id(cell) for given in empty for cell in given} | {id(again) for _, _, again in tried}
    for cell in notebook.cells:
        if cell.cell_type == "code" and id(cell) not in expected:
            assert error(cell) is None, f"fails: {cell.source}: {error(cell).evalue}"


def is_said_to_be_empty(given: list[Any]) -> None:
    """The check of an exercise as the reader gets it is red, and says that there is no answer yet."""
    stubbed = False
    for cell in given:
        if cell.cell_type != "code":
            continue
        found = error(cell)
        if exercises.CHECK in notebooks.tags(cell):
            assert found is not None, f"green without an answer: {cell.source}"
            empty = found.ename == "NotImplementedError" or "NotImplementedError: exercise" in str(found.evalue)
            # An answer at top level leaves its name unbound: its own cell has said that it is empty.
            assert empty or (stubbed and found.ename == "NameError"), f"{found.ename}: {found.evalue}"
        elif found is not None:
            stubbed = stubbed or found.ename == "NotImplementedError"
            assert found.ename in ("NotImplementedError", "NameError"), f"{found.ename}: {found.evalue}"
