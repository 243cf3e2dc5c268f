"""`course record`: sections in order, and each row on the disk when it is there, whatever ends a section or a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_course import TinyCourse

from course.doctor import probe
from course.plan.curriculum import find_root, load
from course.record import Setting, command

SECTION = '\n[[record]]\nname = "{0}"\nmeasures = "what {0} is"\nfunction = "measured:{0}"\nseconds = {1}\n'
FUNCTIONS = """
import sys, time

def two(setting):
    print("this goes to standard error")
    yield {"row": "a", "device": setting.device, "toy": setting.toy}
    yield {"row": "b"}

def slow(setting):
    yield {"row": "first"}
    time.sleep(60)

def lacks(setting):
    import a_package_that_is_not_there
    yield {}

def breaks(setting):
    yield {"row": "kept"}
    raise ValueError("no such luck\\nand more")

def dies(setting):
    import os
    yield {"row": "kept"}
    time.sleep(0.2)
    os._exit(7)

def looks(setting):
    # Whether its first row is on the disk while it is still at work.
    from pathlib import Path
    yield {"row": "first"}
    path = Path("docs/results/looks.json")
    for _ in range(100):
        if path.is_file():
            break
        time.sleep(0.05)
    yield {"row": "second", "there": path.is_file()}

def first(setting):
    import os
    yield {"row": "pid", "pid": os.getpid()}
    raise RuntimeError("the GPU's context is broken")

def second(setting):
    import os
    yield {"row": "pid", "pid": os.getpid()}

def handed(setting):
    yield {"row": setting.options["where"]}
"""
H100 = {"scale": {"name": "gpu", "hardware": "NVIDIA H100", "precision": "", "reason": ""}, "driver": "570"}
CPU = {"scale": {"name": "cpu", "hardware": "a CPU", "precision": "", "reason": ""}, "driver": None}


@pytest.fixture
def record(tiny: TinyCourse, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `course record` over sections of the functions above; returns its status, its lines and the files."""
    tiny.lesson("1_A")
    (tiny.root / "Module-1").mkdir()
    (tiny.root / "Module-1" / "measured.py").write_text(FUNCTIONS)
    monkeypatch.setattr(probe, "ask", lambda: H100)
    monkeypatch.setattr(sys, "argv", ["course", "record"])

    def run(
        *sections: str, seconds: int = 60, extra: str = "", **options: Any
    ) -> tuple[int, list[str], dict[str, Any]]:
        tiny.write_plan("".join(SECTION.format(name, seconds) for name in sections) + extra)
        lines: list[str] = []
        status = command.record(load(tiny.root), command.Options(**options), lines.append)
        files = (tiny.root / command.RESULTS).glob("*.json")
        return status, lines, {path.stem: json.loads(path.read_text()) for path in files}

    return run


def test_rows_are_written_with_what_they_were_measured_on(record: Any, capfd: pytest.CaptureFixture[str]) -> None:
    status, lines, files = record("two")
    (run,) = files["two"]
    assert status == 0 and lines[-1].startswith("ok       two: 2 rows")
    assert (run["hardware"], run["driver"], run["complete"]) == ("NVIDIA H100", "570", True)
    assert run["command"] == "course record" and run["versions"]["torch"].startswith("2.") and run["seconds"] < 60
    assert [row["row"] for row in run["rows"]] == ["a", "b"] and run["rows"][0]["toy"] is False
    out, err = capfd.readouterr()
    assert "this goes to standard error" in err and "standard error" not in out


def test_a_row_is_on_the_disk_before_the_next_one(record: Any) -> None:
    _, _, files = record("looks")
    assert files["looks"][0]["rows"][1] == {"row": "second", "there": True}


def test_what_ends_a_section_badly_is_said_its_rows_stay_and_the_others_go_on(record: Any) -> None:
    status, _, files = record("breaks", "lacks", "dies", "two")
    assert status == 1
    runs = {name: runs[0] for name, runs in files.items()}
    assert {name: run["missing"] for name, run in runs.items() if "missing" in run} == {
        "breaks": "ValueError: no such luck",
        "lacks": "needs the package a_package_that_is_not_there",
        "dies": "its process ended (7)",
    }
    assert [row["row"] for row in runs["breaks"]["rows"]] == ["kept"]
    assert [row["row"] for row in runs["dies"]["rows"]] == ["kept"]
    assert [name for name, run in runs.items() if run["complete"]] == ["two"]


def test_after_a_section_that_failed_the_next_gets_a_process_of_its_own(record: Any) -> None:
    _, _, files = record("second", "first", "two")
    assert files["first"][0]["rows"][0]["pid"] == files["second"][0]["rows"][0]["pid"]
    _, _, files = record("first", "second", again=True)
    assert files["first"][0]["rows"][0]["pid"] != files["second"][0]["rows"][0]["pid"]
    assert files["second"][0]["complete"]


def test_a_section_past_its_time_is_ended_and_the_next_one_runs(record: Any) -> None:
    begun = time.monotonic()
    status, _, files = record("slow", "two", seconds=5)
    assert status == 1 and time.monotonic() - begun < 40
    assert files["slow"][0]["missing"] == "ended after 5 s" and files["slow"][0]["rows"] == [{"row": "first"}]
    assert files["two"][0]["complete"]


def test_a_second_call_goes_on_and_again_measures_anew(record: Any) -> None:
    record("two", "breaks")
    _, lines, _ = record("two", "breaks")
    assert lines[0] == "there    two" and lines[1].startswith("begun    breaks")
    _, lines, files = record("two", again=True)
    assert lines[0].startswith("begun    two") and len(files["two"]) == 1


def test_other_hardware_has_a_run_of_its_own(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record("two")
    other = {**H100, "scale": {**H100["scale"], "hardware": "NVIDIA H200"}}
    monkeypatch.setattr(probe, "ask", lambda: other)
    _, _, files = record("two")
    assert [run["hardware"] for run in files["two"]] == ["NVIDIA H100", "NVIDIA H200"]


def test_a_section_that_does_not_fit_the_budget_is_not_begun(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    status, lines, files = record("two", seconds=50, budget=40.0)
    assert status == 0 and not files
    assert lines == ["no time  two: the same command goes on"]


def test_a_short_section_takes_the_place_of_a_long_one(record: Any) -> None:
    _, lines, files = record("breaks", extra=SECTION.format("two", 20), budget=40.0)
    assert files.keys() == {"two"} and lines[-1].startswith("no time  breaks")


def test_options_and_only(record: Any) -> None:
    extra = 'options = ["where"]\n'
    _, lines, files = record("handed", extra=extra)
    assert lines == ["skipped  handed: needs --option where=..."] and not files
    _, _, files = record("handed", extra=extra, handed={"where": "here"})
    assert files["handed"][0]["rows"] == [{"row": "here"}]
    _, lines, _ = record("two", "breaks", only=("two",))
    assert not any("breaks" in line for line in lines)
    with pytest.raises(Exception, match="--only three: no such section; they are two"):
        record("two", only=("three",))


def test_toy_sizes_run_anywhere_and_are_no_records(
    record: Any, tiny: TinyCourse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ask", lambda: CPU)
    with pytest.raises(Exception, match="records are made on a GPU, and torch sees none here; --toy"):
        record("two")
    status, _, files = record("two", toy=True)
    assert status == 0 and not files
    (run,) = json.loads((tiny.root / command.TOY / "two.json").read_text())
    assert run["rows"][0] == {"row": "a", "device": "cpu", "toy": True}


def test_a_file_that_holds_no_records_is_left_alone(record: Any, tiny: TinyCourse) -> None:
    path = tiny.root / command.RESULTS / "two.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"not": "a list"}')
    with pytest.raises(Exception, match=r"two\.json holds no records \(it is no list of runs\)"):
        record("two")
    assert path.read_text() == '{"not": "a list"}'


@pytest.mark.parametrize(("text", "wanted"), [("8m", 480), ("90s", 90), ("480", 480)])
def test_a_budget_is_minutes_or_seconds(text: str, wanted: float) -> None:
    assert command.seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "0", "8h", "-3", "1.5m"])
def test_another_budget_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="write 8m, 480s or 480"):
        command.seconds(text)


def test_the_list_says_what_is_there(record: Any, tiny: TinyCourse) -> None:
    record("two", "breaks")
    told = command.listing(load(tiny.root))
    assert "NVIDIA H100 (20" in told.split("breaks")[0] and told.endswith("not measured")


def test_a_setting_picks() -> None:
    assert Setting("cpu", True).pick(full=1, toy=2) == 2 and Setting("cuda", False).pick(full=1, toy=2) == 1


def test_every_section_of_the_course_runs_at_toy_size_on_a_bare_image(tmp_path: Path) -> None:
    """The real list on this CPU, as a rehearsal, without what a GPU image lacks: each section comes to its end, with
    rows that can be kept, and the one that needs another package names it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).with_name("bare_image"))}
    called = [sys.executable, "-m", "course.record", "--toy", "--output", str(tmp_path)]
    done = subprocess.run(called, capture_output=True, text=True, env=environment, cwd=find_root())
    assert done.returncode == 0, done.stdout + done.stderr
    for section in load(find_root()).records:
        (run,) = json.loads((tmp_path / f"{section.name}.json").read_text())
        assert run["complete"] and run["rows"], section.name
        names = [row["row"] for row in run["rows"]]
        assert len(set(names)) == len(names), section.name
        if section.name == "qlora":
            assert all("needs the package bitsandbytes" in row["missing"] for row in run["rows"])
        else:
            assert any("missing" not in row for row in run["rows"]), section.name
