"""The folder that `course run` writes to: nothing of the reader's is lost there, and one run holds it at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_course import TinyCourse

from course.run import output

Command = Callable[..., tuple[int, str, str]]
A = "Module-1/notebooks/1_A.ipynb"
KINDS = ("notebooks", "exercises", "solutions")


@pytest.fixture
def course(tiny: TinyCourse) -> TinyCourse:
    source = tiny.lesson("1_A", "x = 1").read_text()
    for kind in KINDS[1:]:
        path = tiny.root / "Module-1" / kind / "1_A.ipynb"
        path.parent.mkdir()
        path.write_text(source)
    return tiny


def files(root: Path) -> dict[str, bytes]:
    """Every file below a folder, links not followed, with its content."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refused(course: TinyCourse, command: Command, folder: str, *paths: str) -> str:
    """The one line with which a run is refused, after which every file is as it was."""
    before = files(course.root.parent)
    status, out, err = command("run", *paths, "--output", folder)
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("course: ")
    assert "--output" in err
    assert files(course.root.parent) == before
    return err


@pytest.mark.parametrize(
    "folder",
    [".", "..", "Module-1/..", "Module-1", "docs/../Module-1/.", *(f"Module-1/{kind}" for kind in KINDS),
     "Module-1/notebooks/out", "Module-1/solutions/a/b", "link to the root", "link/.."],
)  # fmt: skip
def test_a_folder_with_the_sources_is_refused(course: TinyCourse, command: Command, folder: str) -> None:
    (course.root / "link to the root").symlink_to(course.root)
    (course.root / "link").symlink_to(course.root / "Module-1")
    assert "notebooks" in refused(course, command, folder)
    refused(course, command, str(course.root / folder))


def test_the_default_folder_as_a_link_to_the_root(course: TinyCourse, command: Command) -> None:
    (course.root / "runs").mkdir()
    (course.root / "runs/course").symlink_to(course.root)
    before = files(course.root)
    status, _, err = command("run", A)
    assert status == 2 and err.count("\n") == 1 and files(course.root) == before


def test_a_module_that_is_a_link(course: TinyCourse, command: Command) -> None:
    elsewhere = course.root.parent / "elsewhere"
    (course.root / "Module-1").rename(elsewhere)
    (course.root / "Module-1").symlink_to(elsewhere)
    for folder in (elsewhere, elsewhere / "notebooks", elsewhere / "notebooks/out"):
        refused(course, command, str(folder))


@pytest.mark.parametrize("part", ["Module-1", "Module-1/notebooks"])
def test_a_part_of_the_folder_that_leads_out_of_it(course: TinyCourse, command: Command, part: str) -> None:
    link = course.root / "out" / part
    link.parent.mkdir(parents=True)
    link.symlink_to(course.root / part)
    assert "leads out of it" in refused(course, command, "out")


@pytest.mark.parametrize("suffix", [".ipynb", ".html", ".claims.jsonl", ".claims.part"])
@pytest.mark.parametrize("join", [os.link, os.symlink])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_a_source_under_another_name(
    course: TinyCourse, command: Command, suffix: str, join: Callable[[Path, Path], None], kind: str
) -> None:
    there = (course.root / "out" / A).with_suffix(suffix)
    there.parent.mkdir(parents=True)
    (course.root / "out" / output.FILE).write_text('{"notebooks": {}}')
    join(course.root / "Module-1" / kind / "1_A.ipynb", there)
    assert "the same file as" in refused(course, command, "out")


@pytest.mark.parametrize("name", ["index.html", "claims.jsonl", A])
def test_a_readers_file_that_bears_the_name_of_a_reports(course: TinyCourse, command: Command, name: str) -> None:
    path = course.root / "pages" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert "not written by `course run`" in refused(course, command, "pages")


def test_folders_that_are_good(course: TinyCourse) -> None:
    plan = course.plan
    (course.root / "disk").mkdir()
    (course.root / "link").symlink_to(course.root / "disk")
    for folder in ("out", "runs/course", "link", "Module-1/runs", "docs/out", "../out"):
        path = (course.root / folder).resolve()
        with output.claimed(plan, [A], path):
            (path / "index.html").write_text("a report")
            (path / output.FILE).write_text("{}")
        (path / output.FILE).unlink()  # what a damaged one's message asks for
        with output.claimed(plan, [A], path):
            assert (path / "index.html").is_file()


def test_a_second_run_is_refused_and_status_is_not(course: TinyCourse, command: Command) -> None:
    folder = course.root / "runs/course"
    folder.mkdir(parents=True)
    with FileLock(folder / output.LOCK):
        before = files(course.root)
        status, out, err = command("run", A)
        assert (status, out) == (2, "") and err.count("\n") == 1 and "another `course run` writes there" in err
        assert command("status")[0] == 0
        assert files(course.root) == before
    with output.claimed(course.plan, [A], folder):
        pass


def test_the_lock_goes_with_its_process(course: TinyCourse) -> None:
    folder = course.root / "out"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom course.plan import curriculum; from course.run import output\n"
        "plan = curriculum.load(Path(sys.argv[1]))\n"
        "output.claimed(plan, [], Path(sys.argv[2])).__enter__()\nos._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(course.root), str(folder)])
    assert done.returncode == 9 and (folder / output.LOCK).is_file()
    with output.claimed(course.plan, [A], folder):
        pass


@pytest.mark.parametrize("folder", ["/proc/nowhere/out", "a file", "a file/out", "loop/out", "x" * 300])
def test_a_folder_that_cannot_be_written(course: TinyCourse, command: Command, folder: str) -> None:
    (course.root / "a file").write_text("")
    (course.root / "loop").symlink_to("loop")
    status, out, err = command("run", "--output", folder)
    assert (status, out) == (2, "") and err.count("\n") == 1 and err.startswith("course: ")
    assert Path(folder).name[:20] in err or "loop" in err
