"""`course build`: the same file twice, nothing of this machine, and staleness without a run."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_course import TinyCourse, write_notebook

from course.author import build, card, exercises
from course.errors import CourseError
from course.notebook import format as notebooks
from course.notebook import normalise
from course.plan import timings

Command = Callable[..., tuple[int, str, str]]
LESSON = "Module-1/notebooks/1_A b.ipynb"
SOLUTION = "Module-1/solutions/1_A b.ipynb"
EXERCISES = "Module-1/exercises/1_A b.ipynb"
ANSWER = "def double(x):\n    # BEGIN SOLUTION twice x\n    y = 2 * x\n    return y\n    # END SOLUTION"
CHECK = {
    "source": "from course import check\ncheck.equal('double', double(2), 4)",
    "tags": ["exercise-check"],
    "wrong": "double = lambda x: x",
}
BECAUSE = {"source": "Because.", "cell_type": "markdown", "tags": ["solution"]}
NOISY = """\
import os, sys, tempfile, time
sys.stdout.write("\\rstep 1 of 2")
sys.stdout.flush()
time.sleep(0.05)
sys.stdout.write("\\rstep 2 ")
print()
print(os.getcwd(), os.path.expanduser("~/x"), tempfile.mkdtemp(), sys.executable)
print(object(), hex(id(object())), "0x3f800000")"""


@pytest.fixture
def course(tiny: TinyCourse) -> TinyCourse:
    text = {"source": "Some text.", "cell_type": "markdown"}
    tiny.lesson("1_A b", text, NOISY, "", "x = 6 * 7\nx")
    tiny.lesson("2_Next")
    tiny.solution("1_A b", ANSWER, BECAUSE, CHECK)
    return tiny


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def test_building_twice_gives_one_file_without_this_machine(course: TinyCourse, command: Command) -> None:
    status, out, err = command("build")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["built", "built", "made"]
    first = (course.root / LESSON).read_bytes()
    assert command("build", "--check", "Module-1") == (0, "nothing is stale (2 notebooks)\n", "")
    status, out, _ = command("build", LESSON)
    assert status == 0 and out.startswith("unchanged")
    assert (course.root / LESSON).read_bytes() == first

    text = first.decode()
    for private in (str(course.root), str(Path.home()), tempfile.gettempdir(), os.path.dirname(os.__file__)):
        assert private not in text
    raw = json.loads(text)
    cells = raw["cells"]
    assert [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"] == [1, None, 2]
    said = "".join(cells[2]["outputs"][0]["text"])
    assert said.splitlines()[0] == "step 2"
    assert said.splitlines()[1].startswith("Module-1/notebooks ~/x <tmp>/... <python>/")
    assert said.splitlines()[2] == "<object object at 0x...> 0x... 0x3f800000"
    assert cells[4]["outputs"][0]["execution_count"] == 2
    assert cells[0]["metadata"] == {"tags": ["card"]}
    assert raw["metadata"]["kernelspec"]["name"] == "python3"
    assert "version" not in raw["metadata"]["language_info"]
    notebook = notebooks.read(course.root / LESSON)
    assert raw["metadata"]["course"]["code_sha256"] == notebooks.code_sha256(notebook)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1", "import warnings\nwarnings.warn('old habit')"], "cell 3 (import warnings) writes to stderr"),
        (["import sys\nprint('x', file=sys.stderr)"], "writes to stderr: x"),
        (["1", "# why\nint('x')"], "int('x')\n        ValueError: invalid literal"),
        ([{"source": "1/0", "tags": ["raises-exception"]}], "ends in ZeroDivisionError"),
        (["print('/home/somebody/data')"], "shows a path of this machine: /home/somebody/data"),
        ([{"source": "x", "cell_type": "markdown"}, {"source": "", "tags": ["card"]}], "only the first cell"),
    ],
)
def test_a_notebook_with_a_fault_is_not_written(
    tiny: TinyCourse, command: Command, cells: list[Any], message: str
) -> None:
    path = tiny.lesson("1_A b", *cells)
    before = path.read_bytes()
    status, _, err = command("build", LESSON)
    assert status == 1 and message in err
    assert path.read_bytes() == before and sorted(os.listdir(path.parent)) == [path.name]


def built(course: TinyCourse) -> TinyCourse:
    """Built without a kernel: the outputs do not matter here."""
    for name in (LESSON, SOLUTION):
        notebook = notebooks.read(course.root / name)
        for number, (_, cell) in enumerate(notebooks.runnable(notebook), start=1):
            cell.execution_count = number
        notebook.metadata["course"] = {"code_sha256": notebooks.code_sha256(notebook)}
        notebooks.write(notebook, course.root / name)
        build.tidy(course.plan, name)
    assert reasons(course) == []
    return course


def reasons(course: TinyCourse) -> list[str]:
    return [f"{item.path}: {item.reason}" for name in (LESSON, SOLUTION) for item in build.stale(course.plan, name)]


def edit(course: TinyCourse, name: str, change: Callable[[Any], None]) -> None:
    raw = load(course.root / name)
    change(raw)
    (course.root / name).write_text(json.dumps(raw))


def test_stale_code(course: TinyCourse, command: Command) -> None:
    built(course)
    edit(course, LESSON, lambda raw: raw["cells"][-1].update(source="x = 43\nx"))
    status, out, _ = command("build", "--check", "Module-1")
    assert status == 1
    assert out == f"STALE  {LESSON}: its code changed since its outputs were made\n"


def test_stale_order(course: TinyCourse) -> None:
    built(course)
    edit(course, LESSON, lambda raw: raw["cells"][-1].update(execution_count=7))
    assert reasons(course) == [f"{LESSON}: its cells were not run in order, once each"]


def test_stale_outputs(course: TinyCourse) -> None:
    built(course)
    trouble = [{"output_type": "stream", "name": "stderr", "text": ["UserWarning: x"]}]
    edit(course, LESSON, lambda raw: raw["cells"][-1].update(outputs=trouble))
    assert reasons(course) == [f"{LESSON}: cell 5 (x = 6 * 7) writes to stderr: UserWarning: x"]


def test_stale_card_is_mended_without_a_run(course: TinyCourse, command: Command) -> None:
    built(course)
    entry = {"seconds": 95.0, "peak_memory_bytes": 1, "claims": 1}
    timings.save(course.root, {"scale": "cpu", "hardware": "A CPU", "notebooks": {LESSON: entry}})
    assert reasons(course) == [f"{LESSON}: its card is not what docs/curriculum.toml and the records say"]
    assert command("build") == (0, f"mended  {LESSON}\n", "")
    assert reasons(course) == []
    assert "| 1 min 40 s | not measured | not measured |" in "".join(load(course.root / LESSON)["cells"][0]["source"])


def test_stale_metadata(course: TinyCourse, command: Command) -> None:
    built(course)
    edit(course, LESSON, lambda raw: raw["metadata"]["language_info"].update(version="3.11.0"))
    assert reasons(course) == [f"{LESSON}: saved by an editor since it was built (ids or metadata)"]
    command("build")
    assert reasons(course) == []


def test_stale_exercises(course: TinyCourse) -> None:
    built(course)
    edit(course, EXERCISES, lambda raw: raw["cells"][0].update(source="def double(x):\n    return 2 * x"))
    assert reasons(course) == [f"{EXERCISES}: not what {SOLUTION} generates"]
    (course.root / EXERCISES).unlink()
    assert reasons(course) == [f"{EXERCISES}: missing; it is made from {SOLUTION}"]


def test_never_built_and_no_notebook(course: TinyCourse) -> None:
    assert f"{LESSON}: never built" in reasons(course)
    (course.root / LESSON).write_text("{nope")
    assert reasons(course)[0].startswith(f"{LESSON}: not a notebook: not JSON")


def test_exercises_hold_no_answer(course: TinyCourse) -> None:
    built(course)
    raw = load(course.root / EXERCISES)
    assert "".join(raw["cells"][0]["source"]) == 'def double(x):\n    raise NotImplementedError("exercise: twice x")'
    text = json.dumps(raw)
    for leak in ("2 * x", "Because", "lambda", "SOLUTION"):
        assert leak not in text
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in raw["cells"])
    assert raw["cells"][1]["metadata"] == {"tags": ["exercise-check"]}


def test_stub_keeps_what_surrounds_each_block() -> None:
    first = "a = 1\n# BEGIN SOLUTION\nb = 2\n# END SOLUTION\n"
    source = first + 'if a:\n\t# BEGIN SOLUTION say "c"\n\tc = 3\n\t# END SOLUTION\nd'
    assert exercises.stub(source, "here") == (
        'a = 1\nraise NotImplementedError("exercise: write your answer here")\n'
        "if a:\n\traise NotImplementedError(\"exercise: say 'c'\")\nd"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("# BEGIN SOLUTION\nx", "BEGIN SOLUTION without END SOLUTION"),
        ("x\n# END SOLUTION", "line 2: END SOLUTION without BEGIN SOLUTION"),
        ("# BEGIN SOLUTION\n# BEGIN SOLUTION\n# END SOLUTION", "line 2: BEGIN SOLUTION without END SOLUTION before"),
        ("x = 1  # BEGIN SOLUTION\n# END SOLUTION", "line 1: a solution marker stands alone"),
        ("# begin solution\nx\n# end solution", "line 1: a solution marker stands alone"),
    ],
)
def test_unbalanced_markers_are_refused(source: str, message: str) -> None:
    with pytest.raises(CourseError, match=message):
        exercises.stub(source, "here")


def test_unbalanced_markers_are_refused_before_the_run(course: TinyCourse, command: Command) -> None:
    course.solution("1_A b", "# BEGIN SOLUTION\nx")
    status, _, err = command("build", SOLUTION)
    assert status == 1 and "cell 1" in err and "without END SOLUTION" in err


def test_card(course: TinyCourse) -> None:
    plan = course.plan
    text = card.text(plan, plan.lessons[0], {})
    assert text.startswith("# 1. A b\n\nModule 1, lesson 1 of 2 · next: Next (planned)\n")
    assert "- [1 exercise](../exercises/1_A%20b.ipynb), with [solutions](../solutions/1_A%20b.ipynb)" in text
    assert "- Needs: lesson 0\n- Leaves: something" in text
    assert "To read" not in text  # without words
    write_notebook(course.root / plan.lessons[0].path, {"source": "word " * 1540, "cell_type": "markdown"}, "1")
    assert "- To read: some 10 minutes (1,500 words)\n" in card.text(plan, plan.lessons[0], {})
    write_notebook(course.root / plan.lessons[1].path, "1")
    assert "next: [Next](2_Next.ipynb)" in card.text(plan, plan.lessons[0], {})
    assert "previous: [A b](1_A%20b.ipynb)" in card.text(plan, plan.lessons[1], {})


def picture(colours: int, alpha: bool = False) -> str:
    from PIL import Image

    image = Image.new("RGBA" if alpha else "RGB", (64, 64))
    for index in range(64 * 64):
        value = index % colours
        image.putpixel(
            (index % 64, index // 64), (value % 256, value // 7 % 256, 5, 128 if alpha else 255)[: 3 + alpha]
        )
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("alpha", [False, True])
def test_pictures_have_64_colours_and_stay_as_they_are(alpha: bool) -> None:
    from PIL import Image

    small = normalise.small_png(picture(3000, alpha))
    image = Image.open(io.BytesIO(base64.b64decode(small)))
    assert len(image.getcolors(256) or []) <= 64 and image.size == (64, 64)
    assert normalise.small_png(small) == small
    if alpha:
        assert image.convert("RGBA").getpixel((0, 0))[3] < 255  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("<A at 0x55e1>, <B at 0x7f00aabbccdd>", "<A at 0x...>, <B at 0x...>"),
        (
            "id 0x7f00aabbccdd, bits 0x3f800000 0xff 0x3ff0000000000000",
            "id 0x..., bits 0x3f800000 0xff 0x3ff0000000000000",
        ),
        ("ROOT/a b.txt and ROOT, not ROOTS or xROOT/y", "a b.txt and ., not ROOTS or xROOT/y"),
        ("HOME/x (HOME) TMP/tmpab12cd34/x TMP/ipykernel_123/1.py", "~/x (~) <tmp>/.../x <tmp>/.../1.py"),
        ("file://ROOT/x", "file://x"),
    ],
)
def test_mask(text: str, masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/var/tmp")
    normalise._mask_cache.clear()
    root = Path("/srv/the course")
    for word, folder in (("ROOT", str(root)), ("HOME", "/home/ada"), ("TMP", "/var/tmp")):
        text, masked = text.replace(word, folder), masked.replace(word, folder)
    assert normalise.mask(text, root) == masked
    assert normalise.mask(masked, root) == masked
    normalise._mask_cache.clear()


def test_normalise_is_idempotent_and_drops_widgets(tmp_path: Path) -> None:
    data = {"text/plain": "x", "application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "image/png": picture(99)}
    cell = {
        "cell_type": "code", "id": "a", "source": "x", "execution_count": 9,
        "metadata": {"execution": {"iopub.status.idle": "2026"}, "collapsed": True, "tags": ["t"]},
        "outputs": [{"output_type": "display_data", "data": data, "metadata": {"needs_background": "light"}}],
    }  # fmt: skip
    raw = {"cells": [cell, cell], "metadata": {"widgets": {}}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "x.ipynb").write_text(json.dumps(raw))
    once = normalise.normalise(notebooks.read(tmp_path / "x.ipynb"), tmp_path)
    assert once == normalise.normalise(once, tmp_path)
    assert set(once.metadata) == {"kernelspec", "language_info"}
    assert once.cells[0].metadata == {"tags": ["t"]} and once.cells[0].id != once.cells[1].id
    assert set(once.cells[0].outputs[0].data) == {"text/plain", "image/png"}
    assert once.cells[1].execution_count == 2


def test_an_old_notebook_without_ids_is_read(tmp_path: Path) -> None:
    cell = {"cell_type": "markdown", "metadata": {}, "source": ["a\n", "b"]}
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 2}))
    assert notebooks.read(tmp_path / "x.ipynb").cells[0].source == "a\nb"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{nope", "not JSON .* line 1, column 2"),
        (b"[1]", "JSON, but no cells of notebook format 4"),
        (b'{"cells": [], "nbformat": 3}', "JSON, but no cells of notebook format 4"),
        (b'{"cells": [{"cell_type": "poem"}], "metadata": {}, "nbformat": 4}', "not a valid notebook"),
        (b'{"cells": [1], "metadata": {}, "nbformat": 4}', "not a valid notebook"),
        (b"\xff\xfe", "not a notebook"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_no_notebook(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.ipynb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CourseError, match=f"^x.ipynb: .*{message}") as error:
        notebooks.read(path)
    assert "\n" not in str(error.value)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    notebooks.write_text(path, "old")
    path.chmod(0o640)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        notebooks.write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]
    notebooks.write_text(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_read_costs_itself(course: TinyCourse, command: Command) -> None:
    other = "Module-1/notebooks/3_Other.ipynb"
    course.lesson("3_Other", "y = 1")
    for path in (EXERCISES, SOLUTION):
        (course.root / path).parent.mkdir(exist_ok=True)
        good = (course.root / SOLUTION).read_bytes()
        for content in (b"null", b"\xff", b"[" * 100_000, b"<<<<<<< HEAD\n"):
            (course.root / path).write_bytes(content)
            status, out, err = command("build", "--check")
            assert (status, err) == (1, "") and f"STALE  {other}: never built" in out
        if path == EXERCISES:
            assert f"STALE  {SOLUTION}: never built" in out and f"STALE  {EXERCISES}: not what" in out
            build.tidy(course.plan, SOLUTION, io.StringIO())
            assert notebooks.read(course.root / EXERCISES) == exercises.generate(
                notebooks.read(course.root / SOLUTION), SOLUTION, course.root
            )
        else:  # it is named, and so is its lesson, whose card counts its exercises
            assert out.count("not a notebook") == 2 and f"STALE  {SOLUTION}: not a notebook" in out
            status, out, err = command("build")
            assert status == 1 and f"built  {other}" in out and err.count("not a notebook") == 2
            assert (course.root / SOLUTION).read_bytes() == content != good


def test_metadata_of_a_wrong_type_is_stale(course: TinyCourse) -> None:
    path = course.root / LESSON
    for value in ("text", [], 3, None):
        raw = load(path)
        raw["metadata"]["course"] = value
        path.write_text(json.dumps(raw))
        assert "never built" in {item.reason for item in build.stale(course.plan, LESSON)}


def test_a_document_in_another_encoding(course: TinyCourse, command: Command) -> None:
    (course.root / "README.md").write_bytes(b"\xff")
    assert "README.md: not UTF-8" in command("build", "--check")[1]
    status, _, err = command("build", "--documents")
    assert status == 2 and err.count("\n") == 1 and "README.md: not UTF-8" in err
