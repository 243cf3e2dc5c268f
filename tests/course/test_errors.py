"""Whatever a user runs into is one line that says what to do, and never a traceback that nobody asked for."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_course import TinyCourse

from course import cli, errors
from course.doctor import doctor
from course.engine import execute
from course.errors import CourseError
from course.notebook import format as notebooks
from course.plan import curriculum, timings
from course.run import display, history, runner

Command = Callable[..., tuple[int, str, str]]
A = "Module-1/notebooks/1_A.ipynb"
COMMANDS = [("run",), ("status",), ("build", "--check"), ("build", A)]
RECORD = {
    "run": "r", "ok": True, "code_sha256": "", "finished": "2026-01-01T00:00:00", "seconds": 1.0,
    "peak_memory_bytes": 1, "held": 1, "claims": 1,
}  # fmt: skip


def one_line(answer: tuple[int, str, str], *words: str) -> None:
    status, _, err = answer
    assert status == 2 and err.count("\n") == 1 and err.startswith("course: "), err
    assert all(word in err for word in words), err


@pytest.fixture
def course(tiny: TinyCourse) -> TinyCourse:
    tiny.lesson("1_A", "x = 1")
    return tiny


RAISED: list[tuple[BaseException, str]] = [
    (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: No space left on device; free some space"),
    (PermissionError(errno.EACCES, "Permission denied", b"/a"), "/a: Permission denied; write elsewhere"),
    (OSError("without a number"), "without a number"),
    (OSError(), "OSError"),
    (RuntimeError("Symlink loop from '/a'"), "a link leads to itself"),
    (RuntimeError("Could not determine home directory."), "set HOME"),
    (ExceptionGroup("", [ExceptionGroup("", [OSError(errno.EROFS, "Read-only", "/x")])]), "/x: Read-only; write else"),
    (CourseError("said\nin two lines"), "course: said in two lines"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "unexpected UnicodeDecodeError"),
    (RecursionError(), "unexpected RecursionError (COURSE_TRACEBACK=1 shows where)"),
    (KeyError("a\u2028b"), "unexpected KeyError: 'a\\u2028b'"),
    (MemoryError(), "unexpected MemoryError"),
]


@pytest.mark.parametrize(("error", "text"), RAISED, ids=[type(error).__name__ for error, _ in RAISED])
def test_every_error_is_one_line(
    course: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, text: str
) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.delenv(errors.SWITCH, raising=False)
    monkeypatch.setattr(cli, "load", fail)
    for arguments in COMMANDS:
        one_line(command(*arguments), text)
    monkeypatch.setenv(errors.SWITCH, "1")
    status, _, err = command("status")
    assert status == 2 and "Traceback" in err and "raise error" in err


def _typed(key: str, value: Any) -> str:
    return json.dumps({"run": "r", "notebooks": {A: {**RECORD, key: value}}})


STATES = {
    "cut": '{"run": 1', "null": "null", "a list": "[]", "a number": "3", "empty": "", "deep": "[" * 100_000,
    "not UTF-8": b'{"run": "\xff"}', "zeros": bytes(50), "another key": '{"later": 1}',
    "run of a wrong type": '{"run": 1}', "complete of a wrong type": '{"complete": "yes"}',
    "selection of a wrong type": '{"selection": "a"}', "selection of numbers": '{"selection": [1]}',
    "notebooks null": '{"notebooks": null}', "a record null": json.dumps({"notebooks": {A: None}}),
    "a record without fields": json.dumps({"notebooks": {A: {}}}), "a field more": _typed("later", 1),
    "half a pair": '{"run": "\\ud800"}',
    **{f"{key} {value!r:.20}": _typed(key, value) for key, value in [
        ("finished", None), ("finished", 1), ("ok", 1), ("ok", "yes"), ("seconds", "1"), ("seconds", float("nan")),
        ("seconds", -1), ("seconds", 10**400), ("held", True), ("held", 1.5), ("claims", None), ("error", "text"),
        ("error", [None]), ("peak_memory_bytes", 10**400), ("code_sha256", []), ("damaged", {}),
    ]},
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_damaged_state(course: TinyCourse, command: Command, name: str) -> None:
    path = course.root / history.OUTPUT / history.FILE
    path.parent.mkdir(parents=True)
    content = STATES[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for arguments in (("run",), ("run", "--only-failed"), ("status",)):
        one_line(command(*arguments), str(path), "delete it and run again")
    path.unlink()
    assert command("status")[0] == 0


def test_a_state_that_is_a_folder_and_one_that_is_good(course: TinyCourse, command: Command) -> None:
    path = course.root / history.OUTPUT / history.FILE
    path.mkdir(parents=True)
    one_line(command("run"), str(path), "delete it")
    one_line(command("status"), str(path), "delete it")
    path.rmdir()
    path.write_text(_typed("seconds", 2))  # a whole number of seconds, and no `damaged`, as older runs wrote
    record = history.load(path.parent).notebooks[A]
    assert record.seconds == 2.0 and record.damaged == 0


PLANS = {
    "not UTF-8": b"\xff\xfe", "deep": b"a = " + b"[" * 5000, "a folder outside": None, "concepts of numbers": None,
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_a_damaged_plan(course: TinyCourse, command: Command, name: str) -> None:
    path = course.root / curriculum.PLAN
    changes = {"a folder outside": ('"Module-1"', '"../x"'), "concepts of numbers": ('["one", "two"]', "[1, 2]")}
    content = PLANS[name] or path.read_text().replace(*changes[name]).encode()
    path.write_bytes(content)
    for arguments in COMMANDS:
        one_line(command(*arguments), curriculum.PLAN)


@pytest.mark.parametrize(
    "content",
    ["null", "{}", "3", "[1]", '[{"scale": []}]', '[{"scale": "cpu"}]', '[{"scale": "cpu", "hardware": "h"}]',
     '[{"scale": "cpu", "hardware": "h", "notebooks": []}]',
     '[{"scale": "cpu", "hardware": "h", "notebooks": {"a": null}}]',
     '[{"scale": "cpu", "hardware": "h", "notebooks": {"a": {"seconds": "1"}}}]',
     '[{"scale": "cpu", "hardware": "h", "notebooks": {"a": {"seconds": NaN}}}]', b"\xff", "[" * 100_000],
)  # fmt: skip
def test_damaged_records(course: TinyCourse, command: Command, content: str | bytes) -> None:
    path = course.root / timings.FILE
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    one_line(command("run"), timings.FILE)
    one_line(command("build", "--check"), timings.FILE)


def test_paths_that_no_file_system_takes(course: TinyCourse, command: Command) -> None:
    (course.root / "loop").symlink_to("loop")
    one_line(command("run", "x" * 5000), "shorter path")
    one_line(command("build", "x" * 5000), "shorter path")
    one_line(command("run", "loop"), "loop")
    one_line(command("status", "--output", "loop"), "loop")


def test_a_working_folder_that_is_gone(
    course: TinyCourse, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    for arguments in COMMANDS:
        one_line(command(*arguments), "cd to one that is")
    parts = [doctor.memory_and_disk, doctor.clone]
    found = [finding for part in parts for finding in doctor._guarded(part)]
    assert [finding.level for finding in found] == ["ok", "WRONG", "WRONG"] or found[0].level == "note"
    os.chdir(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a file.txt"
    notebooks.write_text(path, "old")
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom course.notebook.format import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_text(Path(sys.argv[1]), 'new' * 1000)\nexcept OSError as error: print(error.filename)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.stdout.strip() == str(path) and done.stderr == ""
    assert [file.name for file in tmp_path.iterdir()] == ["a file.txt"] and path.read_text() == "old"
    with pytest.raises(UnicodeEncodeError):
        notebooks.write_text(path, "half a pair: \ud800")
    assert [file.name for file in tmp_path.iterdir()] == ["a file.txt"] and path.read_text() == "old"
    notebooks.write_text(tmp_path / ("n" * 250), "a long name")


def test_a_write_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("replace"), replace(old, new)))
    notebooks.write_text(tmp_path / "a", "text")
    assert done == ["fsync", "replace"]


def test_a_full_disk_ends_a_run_in_one_line(
    course: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    async def run(*_: Any, **__: Any) -> execute.Outcome:
        return execute.Outcome()

    course.lesson("2_B", "1")
    monkeypatch.setattr(runner, "execute", run)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_text", full)
        one_line(command("run"), "1_A.html: No space left on device; free some space")
    # What was finished is kept, and with room again the same command goes on.
    assert not history.load(course.root / history.OUTPUT).complete
    assert command("run")[0] == 0


# The doctor without its question to torch is the quickest command, in a process of its own.
QUICK = (
    "import sys; from course import cli; from course.doctor import probe; probe.ask = dict; "
    "sys.exit(cli.main(['doctor']))"
)


def test_a_reader_that_goes_away(course: TinyCourse) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", QUICK], cwd=course.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == "" and child.wait() == cli.PIPE_CLOSED


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output(course: TinyCourse) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", QUICK], cwd=course.root, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_no_standard_output_at_all(course: TinyCourse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["status"]) == 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16"])
def test_output_in_another_encoding(tiny: TinyCourse, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.lesson("1_Größe → λ", "x = 1")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert cli.main(["status"]) == 0
    assert "0 of 1 lessons run" in written.getvalue().decode(encoding)


def test_a_reader_that_goes_away_from_a_run(capfd: pytest.CaptureFixture[str]) -> None:
    """rich would leave by SystemExit, inside asyncio, with a traceback."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    shown = display.Display(1)
    shown.console.file = Closed()
    with pytest.raises(BrokenPipeError):
        shown.say("a line")
    assert capfd.readouterr() == ("", "")
