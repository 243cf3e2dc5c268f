"""The plan, the selection of notebooks and the documents made from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_course import TinyCourse

from course.author import documents
from course.errors import CourseError
from course.plan import curriculum, timings
from course.plan.curriculum import find_root, link, load
from course.run import selection

Command = Callable[..., tuple[int, str, str]]


def planned(tiny: TinyCourse) -> TinyCourse:
    tiny.lesson("1_First Steps", "1")
    tiny.lesson("2_Second", "2")
    tiny.lesson("1_Other", "3", folder="Module-2", week=2)
    tiny.lesson("2_Later", folder="Module-2", week=2)
    tiny.solution("1_First Steps", "4")
    return tiny


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("week = 1", "week = 21"), "lesson '1_A': week 21 is outside 1 to 20"),
        (("week = 1", "week = 7"), "lesson '1_A' is in week 7, which no phase holds"),
        (("week = 1", "week = 'one'"), "'week' must be a whole number, not 'one'"),
        (('question = "Why?"', ""), "lesson '1_A': 'question' is missing"),
        (('question = "Why?"', 'question = ["Why?"]'), "'question' must be a text"),
        (('question = "Why?"', 'question = "Why?"\ncolour = 1'), "unknown key 'colour'; the keys are hardware"),
        (('goal = "A goal."', ""), "module 'Module 1': 'goal' is missing"),
        (('name = "1_A"', 'name = "7_A"'), "at its place its name must start with '1_'"),
        (("[[phase]]", "[[phases]]"), "the file: unknown key 'phases'"),
        (("number = 1", "number = "), "is not TOML"),
        (("weeks = [1, 2]", "weeks = [0]"), "phase 'Fundamentals': week 0 is outside"),
        (("[[module.lesson]]", "[module.lesson]"), "must be written as [[lesson]] tables"),
    ],
)
def test_a_mistake_in_the_plan_is_one_line(
    tiny: TinyCourse, command: Command, change: tuple[str, str], message: str
) -> None:
    tiny.lesson("1_A", "1")
    path = tiny.root / curriculum.PLAN
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    status, out, err = command("status")
    assert status == 2 and out == "" and err.count("\n") == 1
    assert message in err


def test_a_lesson_that_was_split_keeps_the_numbers_after_it(tiny: TinyCourse) -> None:
    for name in ("1_A", "1b_A Split", "1c_A Split", "2_B"):
        tiny.lesson(name, "1")
    tiny.solution("1_A", "1")
    tiny.solution("1b_A Split", "1")
    first, second, _, last = load(tiny.root).lessons
    assert (second.number, second.title, last.number) == ("1b", "A Split", "2")
    assert first.solutions(tiny.root) == ["Module-1/solutions/1_A.ipynb"]
    assert second.solutions(tiny.root) == ["Module-1/solutions/1b_A Split.ipynb"]
    tiny.lesson("2c_C", "1")
    with pytest.raises(CourseError, match="must start with '3_' or '2b_'"):
        load(tiny.root)


def test_two_modules_in_one_folder(tiny: TinyCourse) -> None:
    tiny.lesson("1_A", "1")
    module = tiny.root / curriculum.PLAN
    text = module.read_text()
    module.write_text(text + text[text.index("[[module]]") :])
    with pytest.raises(CourseError, match="share a folder"):
        load(tiny.root)


def test_root_is_found_from_below_and_from_elsewhere(tiny: TinyCourse, tmp_path: Path) -> None:
    below = tiny.lesson("1_A", "1").parent
    assert find_root(below) == tiny.root.resolve()
    assert (find_root(tmp_path) / curriculum.PLAN).is_file()  # the clone this package runs from


def test_a_lesson_finds_files_of_its_course_from_any_folder(tiny: TinyCourse, monkeypatch: pytest.MonkeyPatch) -> None:
    import course

    copy = tiny.root / "runs/course/Module-1/notebooks"
    copy.mkdir(parents=True)
    for folder in (tiny.root, copy, tiny.lesson("1_A", "1").parent):
        monkeypatch.chdir(folder)
        assert course.find_root() == tiny.root.resolve()
    monkeypatch.chdir(tiny.root.parent)
    assert course.find_root() == Path(course.__file__).resolve().parent.parent


def test_no_root_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setattr(curriculum, "__file__", str(tmp_path / "site/course/plan/curriculum.py"))
    monkeypatch.chdir(tmp_path)
    for name in ("run", "status", "build"):
        status, _out, err = command(name)
        assert status == 2 and err.count("\n") == 1 and "cd into the clone" in err


def test_links_have_no_spaces() -> None:
    assert link("M/notebooks/2_A b.ipynb", "M/notebooks/1_X.ipynb") == "2_A%20b.ipynb"
    assert link("M/exercises/1_A.ipynb", "M/notebooks/1_A.ipynb") == "../exercises/1_A.ipynb"
    assert link("N/notebooks/1_A.ipynb", "M/notebooks/1_A.ipynb") == "../../N/notebooks/1_A.ipynb"
    assert link("M/README.md", "docs/plan.md") == "../M/README.md"
    assert link("M/README.md", "README.md") == "M/README.md"


def test_selection(tiny: TinyCourse) -> None:
    plan = planned(tiny).plan
    lessons = [f"Module-1/notebooks/{name}.ipynb" for name in ("1_First Steps", "2_Second")]
    other = "Module-2/notebooks/1_Other.ipynb"
    root = tiny.root
    assert selection.to_run(plan, [], root) == [*lessons, other]
    assert selection.to_run(plan, ["Module-2", "Module-1"], root) == [*lessons, other]
    assert selection.to_run(plan, ["notebooks"], root / "Module-1") == lessons
    assert selection.to_run(plan, [lessons[1], lessons[0]], root) == lessons
    assert selection.to_run(plan, ["Module-2"], Path("/")) == [other]  # seen from the root
    assert selection.to_run(plan, ["."], root) == [*lessons, other]
    assert selection.to_run(plan, ["Module-1/solutions"], root) == ["Module-1/solutions/1_First Steps.ipynb"]
    assert selection.to_build(plan, ["Module-1"], root) == [
        lessons[0], "Module-1/solutions/1_First Steps.ipynb", lessons[1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "Modul-1"], "Modul-1: no such file or folder; did you mean 'Module-1'"),
        (["run", "2_Secnd"], "did you mean 'Module-1/notebooks/2_Second.ipynb'?"),
        (["run", "Module-1/notebooks/1_First.ipynb"], "did you mean 'Module-1/notebooks/1_First Steps.ipynb'"),
        (["run", "docs/curriculum.toml"], "not a notebook (its name does not end in .ipynb)"),
        (["run", "docs"], "no notebook of the course lies there"),
        (["run", "/"], "outside the course"),
        (["run", "--from", "third"], "--from 'third' names none of the 3 notebooks to run"),
        (["run", "--from", "other", "Module-1"], "names none of the 2 notebooks"),
        (["run", "--from", "Module-1"], "--from 'Module-1' names 2 notebooks: Module-1/notebooks/1_First"),
        (["run", "--record", "--jobs", "2"], "leave --jobs out"),
        (["build", "Module-1/exercises/1_First Steps.ipynb"], "no such file"),
        (["build", "docs"], "neither a lesson"),
    ],
)
def test_a_path_that_names_nothing_is_one_line(
    tiny: TinyCourse, command: Command, arguments: list[str], message: str
) -> None:
    planned(tiny)
    status, out, err = command(*arguments)
    assert status == 2 and out == "" and err.count("\n") == 1
    assert message in err
    assert not (tiny.root / "runs").exists()


def test_start_from(tiny: TinyCourse) -> None:
    chosen = ["M/notebooks/1_A.ipynb", "M/notebooks/2_B.ipynb", "M/notebooks/22_C.ipynb"]
    root = tiny.root
    assert selection.start_from(chosen, "2_b", root, root) == chosen[1:]
    assert selection.start_from(chosen, "M/notebooks/2_B.ipynb", Path("/x"), Path("/")) == chosen[1:]


def test_no_lesson_yet(tiny: TinyCourse, command: Command) -> None:
    tiny.lesson("1_A")
    assert command("run")[0] == 2


def documents_of(tiny: TinyCourse) -> None:
    for name, block in documents.DOCUMENTS.items():
        path = tiny.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# Title\n\n<!-- generated: {block} -->\nold\n<!-- end generated -->\n\nend\n")


def test_documents_say_what_exists(tiny: TinyCourse, command: Command) -> None:
    plan = planned(tiny).plan
    documents_of(tiny)
    assert [name for name, _ in documents.stale(plan)] == list(documents.DOCUMENTS)
    assert command("build", "--documents")[0] == 0
    assert documents.stale(plan) == [] and documents.write(plan) == []
    readme = (tiny.root / "README.md").read_text()
    assert readme.startswith("# Title\n") and readme.endswith("\nend\n") and "old" not in readme
    assert "| 1 | Fundamentals | Module 1 | 2 of 2 | done |" in readme
    assert "| 2 | Fundamentals | Module 2 | 1 of 2 | in progress |" in readme
    assert "3 of 4 planned lessons are written." in readme
    lesson_plan = (tiny.root / "Lesson Plan.md").read_text()
    first = "[1. First Steps](Module-1/notebooks/1_First%20Steps.ipynb)"
    assert f"| {first} | Why? | not measured | not measured | not measured | done |" in lesson_plan
    assert "| 2. Later | Why? |  |  |  | planned |" in lesson_plan
    assert lesson_plan.count("| Notebook | Question | CPU | 1 GPU | 2 GPUs | Status |") == 2
    (tiny.root / "Module-2/notebooks/1_Other.ipynb").rename(tiny.root / "other.ipynb")
    assert "| Notebook | Question | Status |\n|---|---|---|\n| 1. Other | Why? | planned |" in documents.modules(
        plan, "Lesson Plan.md"
    )
    (tiny.root / "other.ipynb").rename(tiny.root / "Module-2/notebooks/1_Other.ipynb")
    weeks = (tiny.root / "docs/DevLog-000-planning.md").read_text()
    assert "\n### Phase 1: Fundamentals (weeks 1 to 2)\n" in weeks
    assert "| 1 | Module 1 | [1. First Steps](../Module-1/" in weeks
    assert "| 2 | Module 2 | 2. Later | planned | any | A paper (2017) |" in weeks
    # A lesson that is written makes the table stale: it cannot lie.
    (tiny.root / "Module-2/notebooks/2_Later.ipynb").write_text("{}")
    assert [name for name, _ in documents.stale(plan)] == list(documents.DOCUMENTS)


def test_documents_show_recorded_times(tiny: TinyCourse) -> None:
    plan = planned(tiny).plan
    documents_of(tiny)
    documents.write(plan)
    entry = {"seconds": 38.4, "peak_memory_bytes": 1, "claims": 1}
    notebooks = {"Module-1/notebooks/2_Second.ipynb": entry}
    timings.save(tiny.root, {"scale": "gpu", "hardware": "H100", "notebooks": notebooks})
    assert [name for name, _ in documents.stale(plan)] == ["Lesson Plan.md"]
    documents.write(plan)
    assert "not measured | under a minute (40 s) | not measured | done" in (tiny.root / "Lesson Plan.md").read_text()


def test_weeks_are_spans_and_papers_are_links(tiny: TinyCourse) -> None:
    plan = planned(tiny)
    path = tiny.root / curriculum.PLAN
    cited = "Vaswani et al. 2017, Attention Is All You Need, section 3.2 (arXiv:1706.03762)"
    text = path.read_text().replace("weeks = [1, 2]", "weeks = [1, 2, 4]").replace("A paper (2017)", cited, 1)
    path.write_text(text + '\n[[phase]]\nnumber = 2\nname = "Later"\nweeks = [3]\n')
    weeks = documents.weeks(plan.plan, "docs/DevLog-000-planning.md")
    assert "### Phase 1: Fundamentals (weeks 1, 2, 4)\n" in weeks
    assert "### Phase 2: Later (week 3)\n" in weeks
    link_ = "Vaswani et al. 2017, [Attention Is All You Need, section 3.2](https://arxiv.org/abs/1706.03762) |"
    assert link_ in weeks
    assert weeks.count("to be planned") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "the block '<!-- generated: progress -->' is missing"),
        ("<!-- generated: progress -->\n", "a generated block without its end"),
        ("<!-- generated: nonsense -->\n<!-- end generated -->", "nothing generates 'nonsense'"),
    ],
)
def test_a_broken_block_is_one_line(tiny: TinyCourse, command: Command, text: str, message: str) -> None:
    planned(tiny)
    documents_of(tiny)
    (tiny.root / "README.md").write_text(text)
    status, _, err = command("build", "--documents")
    assert status == 2 and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "not measured"),
        (2.0, "under a minute (10 s)"),
        (38.2, "under a minute (40 s)"),
        (57.0, "1 min"),
        (124.9, "2 min"),
        (134.9, "2 min 10 s"),
    ],
)
def test_duration_is_rounded(seconds: float | None, text: str) -> None:
    assert timings.duration(seconds) == text


def test_records_of_another_machine_do_not_mix(tmp_path: Path) -> None:
    base = {"scale": "cpu", "hardware": "A", "driver": None, "python": "3.11", "versions": {}}
    timings.save(tmp_path, {**base, "notebooks": {"one": {"seconds": 1}}})
    timings.save(tmp_path, {**base, "notebooks": {"two": {"seconds": 2}}})
    assert set(timings.load(tmp_path)["cpu"]["notebooks"]) == {"one", "two"}
    timings.save(tmp_path, {**base, "hardware": "B", "notebooks": {"three": {"seconds": 3}}})
    assert set(timings.load(tmp_path)["cpu"]["notebooks"]) == {"three"}
    assert timings.seconds(timings.load(tmp_path), "cpu", "three") == 3
    (tmp_path / timings.FILE).write_text("[1]")
    with pytest.raises(CourseError, match="not a list of records"):
        timings.load(tmp_path)
