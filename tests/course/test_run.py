"""`course run`: what a reader sees when things go well, fail, hang, die or are interrupted."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from tiny_course import TinyCourse

from course.doctor import probe
from course.engine import execute
from course.plan import timings
from course.run import display, history, runner

Command = Callable[..., tuple[int, str, str]]
A, B, C = (f"Module-1/notebooks/{name}.ipynb" for name in ("1_A", "2_B", "3_C"))
CLAIM = "from course import check\ncheck.predicted('two <b>', 2, 2.01, unit='s')\ncheck.holds('yes', True)"


def ran(tiny: TinyCourse) -> history.History:
    return history.load(tiny.root / history.OUTPUT)


def test_a_failure_takes_three_lines_and_the_rest_still_run(tiny: TinyCourse, command: Command) -> None:
    tiny.lesson("1_A", CLAIM)
    tiny.lesson("2_B", "x = 1", "# a remark\nint('[x]')\ny = 2", "print('not reached')")
    tiny.lesson("3_C", "import os\nprint(os.getcwd())")
    status, out, err = command("run")
    assert status == 1 and err == ""
    lines = out.splitlines()
    assert re.fullmatch(rf"ok  {A}  \d+\.\d s  \d+ MiB  2 claims", lines[0])
    assert lines[1:4] == [
        f"FAILED  {B}, cell 2 of 3",
        "        int('[x]')",
        "        ValueError: invalid literal for int() with base 10: '[x]'",
    ]
    assert lines[4].startswith(f"ok  {C}")
    assert lines[5] == "2 of 3 notebooks ran to the end, 2 claims held; report: runs/course/index.html"
    assert lines[6:] == ["1 failed; again only the failed: `course run --only-failed`"]

    output = tiny.root / "runs/course"
    copy = json.loads((output / C).read_text())
    assert "".join(copy["cells"][0]["outputs"][0]["text"]) == str(tiny.root / "Module-1/notebooks") + "\n"
    claims = [json.loads(line) for line in (output / "claims.jsonl").read_text().splitlines()]
    assert [(claim["notebook"], claim["name"]) for claim in claims] == [(A, "two <b>"), (A, "yes")]
    page = (output / "index.html").read_text()
    assert "two &lt;b&gt;" in page and "two <b>" not in page
    assert "2 s</td>" in page and "2.01 s</td>" in page and ">5%<" in page and claims[0]["hardware"] in page
    assert "base 10: &#x27;[x]&#x27;" in page and 'href="Module-1/notebooks/1_A.html"' in page
    for source in (page, (output / A).with_suffix(".html").read_text()):
        assert re.findall(r"""<(?:link|img|iframe)[^>]+(?:src|href)=["']?(?:https?:)?//""", source) == []
        assert all("async" in script for script in re.findall(r"<script[^>]+src=[^>]*>", source))
    # Nothing is written beside the notebooks, and the notebooks are as they were.
    assert sorted(path.name for path in (tiny.root / "Module-1/notebooks").iterdir()) == [
        "1_A.ipynb",
        "2_B.ipynb",
        "3_C.ipynb",
    ]
    assert json.loads((tiny.root / A).read_text())["cells"][0]["outputs"] == []

    # Again only what failed; after it is mended nothing is left to do.
    (tiny.root / B).write_text((tiny.root / A).read_text())
    status, out, _ = command("run", "--only-failed")
    assert status == 0 and out.startswith(f"ok  {B}") and A not in out
    assert command("run", "--only-failed") == (0, "nothing to do: nothing failed in the last run\n", "")
    assert ran(tiny).selection == [A, B, C] and ran(tiny).unfinished() == []


def test_kernel_killed_kernel_gone_cell_too_slow_no_json(tiny: TinyCourse, command: Command) -> None:
    tiny.lesson("1_A", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    tiny.lesson("2_B", "1", "import os\nos._exit(3)")
    tiny.lesson("3_C", "import time\ntime.sleep(30)")
    tiny.lesson("4_D", "1").write_text("{nope")
    status, out, _ = command("run", "--timeout", "1")
    assert status == 1
    assert (
        f"FAILED  {A}, cell 1 of 1\n        import os, signal\n        the kernel was killed (signal 9), most often for"
        in out
    )
    assert f"FAILED  {B}, cell 2 of 2\n        import os\n        the kernel exited by itself with status 3\n" in out
    assert (
        f"{C}, cell 1 of 1\n        import time\n        past its time limit of 1 s for one cell (--timeout)\n" in out
    )
    assert "FAILED  Module-1/notebooks/4_D.ipynb: not a notebook: not JSON (" in out
    assert "Traceback" not in out and "0 of 4 notebooks ran" in out


def test_environment_of_the_kernel(tiny: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    tiny.lesson(
        "1_A",
        "import json, os, sys\nfrom pathlib import Path\n"
        "names = 'OMP_NUM_THREADS MPLBACKEND PYTHONHASHSEED PYTHONDONTWRITEBYTECODE COURSE_NOTEBOOK'.split()\n"
        "Path('env.json').write_text(json.dumps([sys.executable] + [os.environ.get(name) for name in names]))",
    )
    assert command("run", "--jobs", "2")[0] == 0
    assert json.loads((tiny.root / "Module-1/notebooks/env.json").read_text()) == [
        sys.executable, "1", "module://matplotlib_inline.backend_inline", "0", None, A,
    ]  # fmt: skip


def test_jobs_run_side_by_side(tiny: TinyCourse, command: Command) -> None:
    meet = (
        "import time\nfrom pathlib import Path\nPath('{0}').touch()\nend = time.monotonic() + 20\n"
        "while not Path('{1}').exists():\n    assert time.monotonic() < end\n    time.sleep(0.05)"
    )
    tiny.lesson("1_A", meet.format("a", "b"))
    tiny.lesson("2_B", meet.format("b", "a"))
    status, out, _ = command("run", "--jobs", "2")
    assert status == 0, out


def test_peak_memory_counts_children_and_none_is_left(tiny: TinyCourse, command: Command) -> None:
    child = "import time; data = b'x' * 200_000_000; time.sleep(100)"
    tiny.lesson(
        "1_A",
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "open('pid', 'w').write(str(child.pid))\ntime.sleep(1.5)",
    )
    assert command("run")[0] == 0
    assert 200e6 < ran(tiny).notebooks[A].peak_memory_bytes < 450e6
    assert gone(int((tiny.root / "Module-1/notebooks/pid").read_text()))


def gone(pid: int, seconds: float = 5) -> bool:
    """Whether a process ends within some seconds (a zombie has ended)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_continues(tiny: TinyCourse, number: int) -> None:
    tiny.lesson("1_A", CLAIM)
    tiny.lesson(
        "2_B", "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nif not os.path.exists('go'): time.sleep(60)"
    )
    tiny.lesson("3_C", "1")
    arguments = [sys.executable, "-m", "course", "run"]
    child = subprocess.Popen(
        arguments,
        cwd=tiny.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background job ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pid = tiny.root / "Module-1/notebooks/pid"
    end = time.monotonic() + 40
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    child.send_signal(number)
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 128 + number
    assert out.startswith(f"ok  {A}")
    assert out.endswith("interrupted: 1 of 3 finished; the same command continues\n") and "Traceback" not in out
    assert gone(int(pid.read_text()))
    now = ran(tiny)
    assert not now.complete and now.unfinished() == [B, C]
    assert "2 not reached" in (tiny.root / "runs/course/index.html").read_text()
    assert not list((tiny.root / "runs").rglob("*.part"))

    pid.with_name("go").touch()
    again = subprocess.run(arguments, cwd=tiny.root, capture_output=True, text=True)
    lines = again.stdout.splitlines()
    assert again.returncode == 0 and lines[0] == "continuing: 1 of 3 were finished before the interruption"
    assert [line.split()[1] for line in lines[1:3]] == [B, C]
    assert lines[3].startswith("3 of 3 notebooks ran to the end, 2 claims held")
    assert ran(tiny).complete


def record(run: str, ok: bool = True, code: str = "") -> history.Result:
    return history.Result(run, ok, code, "2026-01-01T00:00:00", 7.0, 1, 3, 3)


def test_what_a_call_runs(tiny: TinyCourse) -> None:
    for name in ("1_A", "2_B", "3_C"):
        tiny.lesson(name, f"'{name}'")
    output = tiny.root / "out"
    code = {path: runner.code_sha256(runner.read(tiny.root / path)) for path in (A, B, C)}
    finished = {A: record("r", code=code[A]), B: record("r", code="other code"), C: record("r", ok=False, code=code[C])}

    def todo(last: history.History, **options: Any) -> list[str]:
        history.save(last, output)
        return runner.Runner(tiny.plan, runner.Options([A, B, C], output, **options)).todo

    assert todo(history.History()) == [A, B, C]
    assert todo(history.History("r", False, [A, B, C], finished)) == [B, C]
    assert todo(history.History("r", False, [A, B, C], finished), fresh=True) == [A, B, C]
    assert todo(history.History("r", True, [A, B, C], finished)) == [A, B, C]  # it went through: all again
    assert todo(history.History("later", False, [A, B, C], finished)) == [A, B, C]  # finished in another run
    assert todo(history.History("r", True, [A, B, C], finished), only_failed=True) == [C]
    assert todo(history.History("r", False, [A, B, C], {A: finished[A]}), only_failed=True) == [B, C]
    assert todo(history.History("r", True, [A], {A: finished[A]}), only_failed=True) == []


def test_a_damaged_state_is_one_line(tiny: TinyCourse, command: Command) -> None:
    tiny.lesson("1_A", "1")
    (tiny.root / "runs/course").mkdir(parents=True)
    (tiny.root / "runs/course/state.json").write_text('{"run": 1')
    for name in ("run", "status"):
        status, _, err = command(name)
        assert status == 2 and err.count("\n") == 1 and "delete it" in err


def test_no_kernel_installed(tiny: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel.kernelspec", None)
    tiny.lesson("1_A", "1")
    status, out, _ = command("run")
    assert status == 1 and out.startswith(f"FAILED  {A}: no Python kernel in this environment; type: ")
    assert out.splitlines()[0].endswith("-m pip install ipykernel")


def test_a_kernel_that_does_not_start(tiny: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from ipykernel import kernelspec

    spec = {"argv": [sys.executable, "-c", "raise SystemExit(7)"], "display_name": "x", "language": "python"}
    monkeypatch.setattr(kernelspec, "get_kernel_dict", lambda: spec)
    monkeypatch.setenv("HOME", str(tiny.root / "nowhere"))
    tiny.lesson("1_A", "1")
    status, out, _ = command("run")
    assert status == 1 and "the kernel did not start: the kernel exited by itself with status 7; set HOME to a" in out


def test_exercises_are_all_asked(tiny: TinyCourse, command: Command) -> None:
    tiny.lesson("1_A", "1")
    check = {"source": "from course import check\ncheck.equal('f', f(), 1)", "tags": ["exercise-check"]}
    tiny.solution(
        "1_A",
        "def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION",
        check,
        "def f():\n    return 1",
        check,
    )
    from course.author import build

    build.tidy(tiny.plan, "Module-1/solutions/1_A.ipynb", io.StringIO())
    status, out, _ = command("run", "Module-1/exercises")
    assert status == 1 and "NotImplementedError: exercise: write your answer here" in out
    last = ran(tiny).notebooks["Module-1/exercises/1_A.ipynb"]
    assert (last.ok, last.solved, last.exercises, last.held) == (False, 1, 2, 1)
    assert "1 of 2" in command("status")[1]


def test_record(tiny: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"scale": {"name": "gpu", "hardware": "H100", "precision": "", "reason": ""}, "driver": "570"}
    monkeypatch.setattr(probe, "ask", lambda: machine)
    monkeypatch.setattr(sys, "argv", ["course", "run", "--record"])
    tiny.lesson("1_A", CLAIM)
    assert command("run", "--record")[0] == 0
    written = timings.load(tiny.root)["gpu"]
    assert (written["hardware"], written["driver"], written["command"]) == ("H100", "570", "course run --record")
    assert set(written["versions"]) == {"torch", "pytorch-lightning", "transformers", "numpy"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", written["date"]) and written["python"].startswith("3.")
    entry = written["notebooks"][A]
    assert entry["claims"] == 2 and 0 < entry["seconds"] < 60 and entry["peak_memory_bytes"] > 1e6
    before = (tiny.root / timings.FILE).read_text()
    tiny.lesson("2_B", "1/0")
    status, _, err = command("run", "--record", B)
    assert status == 2 and "not recorded: 1 of 1 notebooks did not run to the end" in err
    assert (tiny.root / timings.FILE).read_text() == before


def test_the_live_table_shows_cell_times_and_claims() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with display.Display(3, finished=1, console=console) as shown:
        running = display.Running("1_A.ipynb", 125.0, lambda: 4)
        shown.start(running)
        running.on_cell(3, 20)
        shown.start(display.Running("2_B.ipynb", None, lambda: 0))
        shown._live.refresh()
        shown.finish("2_B.ipynb", record("r"))
        shown._live.refresh()
    text = re.sub(r"\x1b\[[\d;?]*\w", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert re.search(r"1_A\.ipynb +3/20 +0 s of 2:05 +4", text)
    assert re.search(r"2_B\.ipynb +starting +0 s of \? +0", text)
    assert re.search(r"2 of 3 finished +0 s +7", text)  # 3 of the finished one, 4 of the running one


def test_expected_time_comes_from_here_else_from_the_records(tiny: TinyCourse, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.lesson("1_A", "1")
    monkeypatch.setenv("COURSE_SCALE", "gpu")
    entries = {name: {"seconds": 99.0, "peak_memory_bytes": 1, "claims": 1} for name in (A, B)}
    timings.save(tiny.root, {"scale": "gpu", "hardware": "", "notebooks": entries})
    last = history.History("r", True, [A], {A: record("r"), C: record("r", ok=False)})
    assert runner._expected(tiny.plan, last) == {A: 7.0, B: 99.0}


def test_the_kernels_environment_keeps_the_users_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("COURSE_CLAIMS", "elsewhere")
    monkeypatch.setenv("COURSE_DATA", "../data")
    env = execute.environment("n", None)
    assert env["COURSE_DATA"] == str(Path.cwd().parent / "data")  # the kernel works in the notebook's folder
    assert env["OMP_NUM_THREADS"] == "5" and "COURSE_CLAIMS" not in env
    assert execute.environment("n", tmp_path / "c")["COURSE_CLAIMS"] == str(tmp_path / "c")
    assert os.environ["COURSE_CLAIMS"] == "elsewhere"


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom course import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "slow = {'torch', 'numpy', 'nbclient', 'nbformat', 'rich', 'jupyter_client'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    for name in ("run", "doctor", "status", "build"):
        assert f"\n    {name} " in asked.stdout
