"""What a run or a build leaves behind, however it ends: its results, no process, no temporary file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from tiny_course import TinyCourse

from course.engine import execute
from course.notebook import format as notebooks
from course.notebook import normalise
from course.run import runner

Command = Callable[..., tuple[int, str, str]]
A, B, C = (f"Module-1/notebooks/{name}.ipynb" for name in ("1_A", "2_B", "3_C"))


def test_nothing_of_a_run_is_left_in_the_temporary_folder_nor_needed_at_home(
    tiny: TinyCourse, monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    place, home = tmp_path / "temporary", tmp_path / "home"
    place.mkdir()
    home.write_text("a file, in which nothing can be made")
    for name in ("HOME", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    tiny.lesson("1_A", "import tempfile\nfolder = tempfile.mkdtemp()\nprint(folder)", "print(tempfile.gettempdir())")
    status, out, _ = command("run")
    assert status == 0, out
    assert list(place.iterdir()) == []
    copy = notebooks.read(tiny.root / "runs/course" / A)
    folder = Path(copy.cells[0].outputs[0].text.strip())
    assert folder.is_relative_to(place) and not folder.exists()
    masked = normalise.mask(f"{copy.cells[0].outputs[0].text}{copy.cells[1].outputs[0].text}", tiny.root)
    assert masked == "<tmp>/...\n<tmp>\n"


def test_sigterm_ends_a_build_and_leaves_nothing(tiny: TinyCourse) -> None:
    tiny.lesson(
        "1_A", "import os, time\nopen('pid.part', 'w').write(str(os.getpid()))\nos.rename('pid.part', 'pid')\n"
        "time.sleep(60)"
    )  # fmt: skip
    place = tiny.root / "temporary"
    place.mkdir()
    source = (tiny.root / A).read_bytes()
    child = subprocess.Popen(
        [sys.executable, "-m", "course", "build", A],
        cwd=tiny.root, env={**os.environ, "TMPDIR": str(place)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid = tiny.root / "Module-1/notebooks/pid"
    end = time.monotonic() + 40
    while not pid.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    kernels = [psutil.Process(int(pid.read_text()))]
    child.terminate()
    assert child.communicate(timeout=30)[1] == "" and child.returncode == 143
    _, alive = psutil.wait_procs(kernels, timeout=5)
    assert not alive and list(place.iterdir()) == [] and (tiny.root / A).read_bytes() == source


def test_a_notebook_that_cannot_be_written_costs_its_own_line(
    tiny: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(notebook: Any, *_: Any, **__: Any) -> execute.Outcome:
        cell = notebook.cells[0]
        output = nbformat.v4.new_output("stream", name="stdout", text="half a pair \ud800")
        cell.outputs = [output] if cell.source == "1" else []
        if cell.source == "4":
            raise KeyError("what nobody thought of")
        return execute.Outcome()

    monkeypatch.setattr(runner, "execute", run)
    tiny.lesson("1_A", "1")
    tiny.lesson("2_B", "2")
    tiny.lesson("3_C", "3").write_bytes(b"\xff")
    tiny.lesson("4_D", "4")
    status, out, err = command("run")
    assert (status, err) == (1, "")
    assert f"FAILED  {A}: " in out and f"\nok  {B}" in out and f"FAILED  {C}: not a notebook" in out
    assert "4_D.ipynb: unexpected KeyError: 'what nobody thought of' (COURSE_TRACEBACK=1 shows where)" in out
    assert "1 of 4 notebooks ran to the end" in out and not list(tiny.root.rglob("*.part"))
    monkeypatch.setenv("COURSE_TRACEBACK", "1")
    status, _, err = command("run", "Module-1/notebooks/4_D.ipynb")
    assert status == 2 and "Traceback" in err


def test_an_output_of_a_wrong_type_costs_its_own_notebook(tiny: TinyCourse, command: Command) -> None:
    show = "from IPython.display import display\ndisplay({'image/png': 123}, raw=True)"
    tiny.lesson("1_A", "from course import check\ncheck.holds('a', True)", show)
    tiny.lesson("2_B", "1")
    status, out, err = command("run")
    assert (status, err) == (1, "") and f"FAILED  {A}, cell 2 of 2" in out and "no notebook can hold: 123" in out
    assert f"ok  {B}" in out and "1 of 2 notebooks ran to the end, 1 claims held" in out
    status, _, err = command("build", A)
    assert status == 1 and f"NOT BUILT  {A}, cell 2 of 2" in err


def test_an_error_whose_text_cannot_be_sent_is_an_error(tiny: TinyCourse, command: Command) -> None:
    tiny.lesson("1_A", "raise ValueError('half a pair: \\ud800')", "print('not reached')")
    status, out, err = command("run")
    assert (status, err) == (1, "") and f"FAILED  {A}, cell 1 of 2" in out and "Error: " in out
    assert command("build", A)[0] == 1
