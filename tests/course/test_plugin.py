"""The pytest plugin: notebooks run the same alone and side by side, and nothing else changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_course import write_notebook

from course.engine import pytest_plugin

NBMAKE = ["--nbmake", "--nbmake-kernel=python3"]
ASKS = """\
import os, sys
assert os.environ["OMP_NUM_THREADS"] == "7"
assert os.environ["PYTHONHASHSEED"] == "0"
assert os.environ["MPLBACKEND"] == "module://matplotlib_inline.backend_inline"
assert "PYTHONDONTWRITEBYTECODE" not in os.environ
assert os.environ["COURSE_NOTEBOOK"] == {name!r}, os.environ["COURSE_NOTEBOOK"]
assert os.environ.get("COURSE_SCALE") == "cpu"
assert os.path.isabs(os.environ["COURSE_DATA"]) and os.environ["COURSE_DATA"].endswith("my data")
from course import check
check.holds("first", True)
check.equal("second", 1, 1)"""
AFTER = """\
import os
from nbclient import NotebookClient

def test_environment_is_as_before():
    assert "COURSE_NOTEBOOK" not in os.environ and "COURSE_CLAIMS" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7" and os.environ["PYTHONDONTWRITEBYTECODE"] == "1"
    assert "PYTHONHASHSEED" not in os.environ and os.environ["COURSE_DATA"] == "my data"
    assert NotebookClient.__init__.__module__ == "nbclient.client"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    write_notebook(folder / "part one/a b.ipynb", ASKS.format(name="part one/a b.ipynb"))
    write_notebook(folder / "part one/c.ipynb", ASKS.format(name="part one/c.ipynb"))
    (folder / "test_after.py").write_text(AFTER)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return folder


def run(folder: Path, *arguments: str, **env: str) -> tuple[int, str]:
    """pytest in a process of its own, without the plugins that do not matter here."""
    ours = ("COURSE_", "PYTEST_", "PYTHONHASHSEED")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    clean.update({"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "7"})
    clean.update({"COURSE_SCALE": "cpu", "COURSE_DATA": "my data"} | env)
    without = [f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "jaxtyping", "timeout", "anyio")]
    command = [sys.executable, "-m", "pytest", "-q", *without, *arguments]
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_alone_with_the_users_file(project: Path) -> None:
    claims = project / "claims.jsonl"
    claims.write_text('{"notebook": "older", "held": true}\n')
    after = project / "test_after.py"
    after.write_text(
        AFTER.replace('"COURSE_CLAIMS" not in os.environ', 'os.environ["COURSE_CLAIMS"] == "claims.jsonl"')
    )
    status, out = run(project, *NBMAKE, "-p", "no:xdist", "part one", "test_after.py", COURSE_CLAIMS="claims.jsonl")
    assert status == 0, out
    assert "4 claims held in 2 notebooks\n" in out and "3 passed" in out  # the older one is not counted
    records = [json.loads(line) for line in claims.read_text().splitlines()]
    assert [record["notebook"] for record in records] == [
        "older", *["part one/a b.ipynb"] * 2, *["part one/c.ipynb"] * 2,
    ]  # fmt: skip


def test_side_by_side_nothing_is_left_behind(project: Path) -> None:
    status, out = run(project, *NBMAKE, "-n", "2", "part one", "test_after.py")
    assert status == 0, out
    assert out.count("4 claims held in 2 notebooks\n") == 1 and "3 passed" in out  # once, by the controller
    left = sorted(path.name for path in project.rglob("*") if path.is_file())
    assert left == ["a b.ipynb", "c.ipynb", "pytest.ini", "test_after.py"]


def test_a_claim_that_does_not_hold_is_counted(tmp_path: Path) -> None:
    write_notebook(tmp_path / "a.ipynb", "from course import check\ncheck.holds('x', True)\ncheck.holds('y', False)")
    status, out = run(tmp_path, *NBMAKE, "-p", "no:xdist", "a.ipynb")
    assert status == 1 and "1 claims held in 1 notebook, 1 did not\n" in out


def test_other_projects_are_left_alone(tmp_path: Path) -> None:
    write_notebook(tmp_path / "not asked for.ipynb", "1/0")
    (tmp_path / "test_x.py").write_text(
        "import os, sys\n\ndef test_x():\n"
        "    assert 'COURSE_CLAIMS' not in os.environ and os.environ['OMP_NUM_THREADS'] == '7'\n"
        "    assert not {'course.check', 'nbclient'} & set(sys.modules)\n"
    )
    status, out = run(tmp_path, "-p", "no:nbmake", "-p", "no:xdist")
    assert status == 0 and "claims" not in out, out


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_worker_begins_with_notebooks(workers: int) -> None:
    items: Any = [SimpleNamespace(number=number, nbmake=number >= 10) for number in range(17)]
    config: Any = SimpleNamespace(workerinput={"workercount": workers})
    pytest_plugin.pytest_collection_modifyitems(config, items)
    assert sorted(item.number for item in items) == list(range(17))
    if workers == 1:
        assert [item.number for item in items] == list(range(17))
    if workers == 2:  # the first eight are one worker's to begin with
        assert [item.number for item in items] == [10, 11, 12, 0, 1, 2, 3, 4, 16, 15, 14, 13, 5, 6, 7, 8, 9]


def test_the_plugin_imports_nothing_slow() -> None:
    code = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport course.engine.pytest_plugin\n"
        "slow = {'torch', 'numpy', 'nbclient', 'nbformat', 'jupyter_client'} & (set(sys.modules) - before)\n"
        "assert not slow, slow"
    )
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_exercises_are_collected_when_they_are_named(tmp_path: Path) -> None:
    for kind in ("notebooks", "exercises", "solutions"):
        write_notebook(tmp_path / f"Module-1/{kind}/1_a.ipynb", "x = 1")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    collect = [*NBMAKE, "--collect-only"]
    assert run(tmp_path, *collect, "Module-1")[1].count("1_a.ipynb::") == 2
    assert run(tmp_path, *collect, "Module-1/exercises")[1].count("1_a.ipynb::") == 1
    assert run(tmp_path, *collect, "Module-1/exercises/1_a.ipynb")[1].count("1_a.ipynb::") == 1


@pytest.mark.parametrize("above", ["clone", "exercises/clone", "a/solutions", "my exercises::old/clone"])
def test_whether_exercises_are_named_is_told_by_their_place(tmp_path: Path, above: str) -> None:
    root = tmp_path / above
    module = root / "Module-1"
    folder = module / "exercises"
    for path in (folder, module / "solutions", root / "exercises of mine", root / "Module-2/exercises"):
        path.mkdir(parents=True)
    (folder / "1_a.ipynb").write_text("{}")
    (root / "link").symlink_to(folder)

    def ignored(cwd: Path, *arguments: str, path: Path = folder) -> bool | None:
        config: Any = SimpleNamespace(args=list(arguments), invocation_params=SimpleNamespace(dir=cwd))
        return pytest_plugin.pytest_ignore_collect(path, config)

    for cwd, argument in ((root, "Module-1"), (root, "."), (module, str(module)), (module, "."), (root, str(root)),
                          (root, "exercises of mine"), (root, "Module-1/solutions"), (module, "solutions/1_a.ipynb::"),
                          (tmp_path, above), (root, "Module-2/exercises"), (root, "no/exercises")):  # fmt: skip
        assert ignored(cwd, argument) is True, argument
    node = "1_a.ipynb::a::b"
    for cwd, argument in ((root, "Module-1/exercises"), (root, "Module-1/exercises/1_a.ipynb"), (module, "exercises/"),
                          (module, f"exercises/{node}"), (folder, str(folder)), (folder, node), (root, "link"),
                          (root, f"{folder}/{node}"), (tmp_path, f"{above}/Module-1/exercises")):  # fmt: skip
        assert ignored(cwd, argument) is None, argument
        assert ignored(cwd, "..", argument) is None
    assert ignored(root, ".", path=root / "Module-2/exercises") is None  # beside no solutions: not a course's


def test_a_notebooks_temporary_files_go_with_it(tmp_path: Path) -> None:
    write_notebook(tmp_path / "a.ipynb", "import tempfile\nprint(tempfile.mkdtemp())")
    place = tmp_path / "temporary"
    place.mkdir()
    status, out = run(tmp_path, *NBMAKE, "-p", "no:xdist", "a.ipynb", TMPDIR=str(place))
    assert status == 0, out
    assert [path.name for path in place.iterdir() if not path.name.startswith("pytest-of-")] == []
