"""The whole way: killed at every writing it ends with the same files, what has changed is done anew, and no more."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llm_core import GPT, GPTConfig
from llm_ops.cli import main
from llm_ops.way import walk as walking
from llm_ops.way.judge import repeats_a_line
from llm_ops.way.kills import finished_after, lost_by_a_kill, seconds_to_finish
from llm_ops.way.page import FACTS
from llm_ops.way.quantize import predicted_bytes
from llm_ops.way.settings import METHODS, QUICK
from llm_ops.way.stage import BEGUN, CLAIMS, DONE, Made, Place, Seal, Stage, any_seal, begin, checksums, read_seal
from llm_ops.way.stages import STAGES, stages_of
from llm_ops.way.walk import PAGE, ClaimFailed, walk
from llm_serve.quantization.apply import quantize

from course import check
from course.files import locked


class Killed(BaseException):
    """What SIGKILL is: nothing catches it."""


class Toy:
    """Four stages, two of which meet in the last; killed at one of their writings, or at one of the walker's."""

    def __init__(self, root: Path, text: str = "a b a") -> None:
        self.text, self.runs, self.left = text, list[str](), -1
        self.place = Place(root, QUICK)
        root.mkdir(parents=True, exist_ok=True)

    def moment(self) -> None:
        """A place where the process may be gone."""
        if self.left == 0:
            raise Killed
        self.left -= 1

    def write(self, stage: str, text: str) -> Made:
        self.runs.append(stage)
        path = self.place.folder(stage) / "file.txt"
        if self.left == 0:  # half of it is there
            path.write_text(text[: len(text) // 2])
        self.moment()
        path.write_text(text)
        self.moment()
        check.equal(f"{stage} is written", path.read_text(), text)
        self.moment()
        return Made(("file.txt",), {"length": len(text)}, (f"make {stage}",))

    def read(self, stage: str) -> str:
        return (self.place.root / stage / "file.txt").read_text()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("text", "t", (), lambda place: self.write("text", self.text), lambda place: {"text": self.text}),
            Stage("letters", "l", ("text",), lambda place: self.write("letters", "".join(sorted(self.read("text"))))),
            Stage("length", "n", ("text",), lambda place: self.write("length", str(len(self.read("text"))))),
            Stage("both", "b", ("letters", "length"),
                  lambda place: self.write("both", self.read("letters") + self.read("length"))),
        )  # fmt: skip

    def walk(self, **options: Any) -> dict[str, Seal]:
        seals = walk(self.place, self.stages, tell=lambda line: None, **options)
        return {seal.stage: seal for seal in seals}


@given(st.lists(st.integers(0, 12), max_size=4))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_killed_anywhere_it_goes_on(tmp_path_factory: pytest.TempPathFactory, kills: list[int]) -> None:
    root = tmp_path_factory.mktemp("way")
    whole, killed = Toy(root / "whole").walk(), Toy(root / "killed")
    done: set[str] = set()
    for moment in kills:
        killed.runs, killed.left = [], moment
        with contextlib.suppress(Killed):
            killed.walk()
        assert not done & set(killed.runs), "a sealed stage was done again"
        done = {stage.name for stage in killed.stages if (killed.place.root / stage.name / DONE).exists()}
    killed.left = -1
    found = killed.walk()
    assert {name: seal.digest for name, seal in found.items()} == {name: seal.digest for name, seal in whole.items()}
    assert killed.read("both") == "  aab5"


def test_each_writing_of_the_walker_may_be_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seals, what was begun, the page: whatever `write_text` writes, a kill there loses nothing."""
    whole = {name: seal.digest for name, seal in Toy(tmp_path / "whole").walk().items()}
    write, left = walking.write_text, [0]

    def counted(path: Path, text: str) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        write(path, text)

    for moment in itertools.count():
        toy, left[0] = Toy(tmp_path / str(moment)), moment
        with monkeypatch.context() as patched:
            patched.setattr("llm_ops.way.walk.write_text", counted)
            patched.setattr("llm_ops.way.stage.write_text", counted)
            try:
                toy.walk()
                break
            except Killed:
                pass
        assert {name: seal.digest for name, seal in toy.walk().items()} == whole
    assert moment > 2 * len(toy.stages), "the walker writes more than a seal and a beginning for each stage"


def test_what_changed_is_done_and_no_more(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "way")
    toy.walk()
    assert toy.runs == ["text", "letters", "length", "both"]

    def again(**options: Any) -> list[str]:
        toy.runs = []
        toy.walk(**options)
        return toy.runs

    assert again() == []
    toy.text = "b a a"  # the same letters, as many of them
    assert again() == ["text", "letters", "length"]
    toy.text = "b a c"
    assert again() == ["text", "letters", "length", "both"] and toy.read("both").endswith("5")
    (tmp_path / "way" / "length" / "file.txt").write_text("6")
    assert again() == ["length"] and toy.read("length") == "5"
    (tmp_path / "way" / "letters" / "file.txt").unlink()
    assert again() == ["letters"]
    assert again(again_from="length") == ["length", "both"]
    (tmp_path / "way" / "both" / DONE).write_text('{"stage": "both"')
    assert again() == ["both"]
    for damage in (Path.unlink, lambda path: path.write_text("{}\n")):
        damage(tmp_path / "way" / "length" / CLAIMS)
        assert again() == ["length"], "nobody can say what it claimed"


def test_a_beginning_keeps_what_is_of_the_same_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    begin(folder, {"data": "1"})
    (folder / "last.ckpt").write_text("half")
    (folder / CLAIMS).write_text("{}\n")
    begin(folder, {"data": "1"})
    assert (folder / "last.ckpt").exists() and not (folder / CLAIMS).exists(), "claims of the attempt before are gone"
    begin(folder, {"data": "2"})
    assert sorted(path.name for path in folder.iterdir()) == [BEGUN]
    (folder / "last.ckpt").write_text("half")
    (folder / BEGUN).write_text("{")
    begin(folder, {"data": "2"})
    assert not (folder / "last.ckpt").exists(), "nobody knows what it is of"


def test_a_seal_is_of_settings_inputs_and_files(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "way")
    seal = toy.walk()["letters"]
    folder, told = tmp_path / "way" / "letters", asdict(QUICK)
    assert read_seal(folder, told, seal.inputs) == seal
    assert read_seal(folder, {**told, "seed": 1}, seal.inputs) is None
    assert read_seal(folder, told, {"text": "another"}) is None
    assert read_seal(tmp_path, told, seal.inputs) is None
    assert seal.digest == replace(seal, seconds=9.0, inputs={}, measured={"speed": 1}, claims="0").digest
    others = replace(seal, files={"file.txt": "0"}), replace(seal, stage="other"), replace(seal, facts={"length": 0})
    assert len({each.digest for each in (seal, *others)}) == 4
    text = (folder / DONE).read_text()
    for part, odd in (("files", None), ("seconds", "9"), ("facts", []), ("hardware", 3), ("commands", None)):
        (folder / DONE).write_text(json.dumps({**json.loads(text), part: odd}))
        assert any_seal(folder) is None is read_seal(folder, told, seal.inputs), part
    with pytest.raises(FileNotFoundError, match="gone is not there"):
        checksums(folder, ("gone",))


def test_a_claim_that_fails_stops_the_way(tmp_path: Path) -> None:
    fault = [1]

    def first(place: Place) -> Made:
        check.holds("this one holds", True)
        check.equal("two <and> two", 4 + fault[0], 4)
        return Made(())

    def second(place: Place) -> Made:
        check.skipped("a third", "it is not measured here")
        return Made(())

    stages = (Stage("first", "f", (), first), Stage("second", "s", ("first",), second))
    place = Place(tmp_path / "way", QUICK)
    place.root.mkdir()
    with pytest.raises(ClaimFailed, match="stage first: FAILS  two <and> two"):
        walk(place, stages)
    page = (place.root / PAGE).read_text()
    assert "two &lt;and&gt; two" in page and "FAILED" in page and page.count("not done") == 2
    assert any_seal(place.root / "first") is None and not (place.root / "second").exists()
    assert "COURSE_CLAIMS" not in os.environ or os.environ["COURSE_CLAIMS"] != str(place.root / "first" / CLAIMS)
    (place.root / "second").mkdir()
    (place.root / "second" / DONE).write_text(json.dumps({"stage": "second", "seconds": "odd"}))
    with pytest.raises(ClaimFailed, match="stage first"):  # and not what the page makes of such a seal
        walk(place, stages)
    fault[0] = 0
    lines: list[str] = []
    walk(place, stages, tell=lines.append)
    page = (place.root / PAGE).read_text()
    assert "FAILED" not in page and "2 of 2" in page and "a third" in page and "skipped" in page
    assert [line.split()[1:3] for line in lines] == [["first", "done"], ["second", "done"]]


def test_refusals_in_one_line(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "way")
    toy.walk(stop_after="letters")
    assert not (tmp_path / "way" / "length").exists()
    with pytest.raises(ValueError, match="stage both comes after letters, where this walk stops"):
        toy.walk(again_from="both", stop_after="letters")
    with pytest.raises(ValueError, match="there is no stage 'lettres'; the stages are text, letters, length, both"):
        toy.walk(again_from="lettres")
    with pytest.raises(ValueError, match=r"was begun with seed=0, and not 3; give the same options, or another folder"):
        walk(Place(toy.place.root, replace(QUICK, seed=3)), toy.stages)
    with locked(toy.place.root / "lock"), pytest.raises(ValueError, match="is in use by another process"):
        toy.walk()
    (toy.place.root / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        toy.walk()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"holds letter\.txt and no way; give a folder that is new or empty"):
        walk(Place(tmp_path / "home", QUICK), toy.stages)
    assert sorted(path.name for path in (tmp_path / "home").iterdir() if path.name != "lock") == ["letter.txt"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / PAGE).write_text("my page")
    with pytest.raises(ValueError, match=r"holds index\.html and no way"):
        walk(Place(tmp_path / "site", QUICK), toy.stages)
    assert (tmp_path / "site" / PAGE).read_text() == "my page"


def test_a_link_is_not_followed_to_delete(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "way")
    toy.walk()
    (tmp_path / "way" / "both").rename(tmp_path / "elsewhere")
    (tmp_path / "way" / "both").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link, and what it leads to is not deleted"):
        toy.walk(again_from="both")
    assert (tmp_path / "elsewhere" / "file.txt").exists()


def test_the_page_shows_what_holds(tmp_path: Path) -> None:
    """Not what an older text has left, and not what it cannot read."""
    toy = Toy(tmp_path / "way")
    toy.walk()
    assert "4 of 4" in (tmp_path / "way" / PAGE).read_text()
    toy.text = "c"
    toy.walk(stop_after="letters")
    page = (tmp_path / "way" / PAGE).read_text()
    assert page.count("not done") == 2 and "2 of 4" in page and "letters is written" in page
    assert "both is written" not in page
    odd = Stage("serve", "s", (), lambda place: Made((), {"babygpt": {"speed": 1}}))
    walk(Place(tmp_path / "odd", QUICK), (odd,), tell=lambda line: None)
    assert "babygpt: found what this version cannot show" in (tmp_path / "odd" / PAGE).read_text()


@pytest.mark.parametrize("odd", [float("nan"), object(), "\ud800"])
def test_facts_that_no_seal_can_hold(tmp_path: Path, odd: Any) -> None:
    stage = Stage("one", "o", (), lambda place: Made((), {"odd": odd}))
    with pytest.raises(ValueError, match="stage one found what no seal can hold"):
        walk(Place(tmp_path / "way", QUICK), (stage,), tell=lambda line: None)


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for arguments, wanted in (
        ([str(tmp_path / "file")], "is a file; give a folder"),
        ([str(tmp_path / "new"), "--stop_after", "sleep"], "there is no stage 'sleep'; the stages are data, train,"),
        ([str(tmp_path / "new"), "--seed", "-1"], "--seed -1 must be from 0"),
        ([str(tmp_path / "new"), "--without", "babygpt"], "invalid choice"),
        ([""], "the folder has no name"),
        (["~nobody-of-that-name/way"], "there is no such user"),
        ([], "the following arguments are required: folder"),
    ):
        assert main(["way", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("llm-ops: ") and error.count("\n") == 1 and wanted in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"], "nothing was made"


def test_the_stages() -> None:
    """Each reads what came before it, also without smollm2; the page has words for each that has facts."""
    for chosen in (STAGES, stages_of(replace(QUICK, smollm2=False))):
        seen: set[str] = set()
        for stage in chosen:
            assert set(stage.needs) <= seen
            seen.add(stage.name)
    assert "adapt" not in {need for stage in chosen for need in (stage.name, *stage.needs)}
    assert set(FACTS) == {stage.name for stage in STAGES}
    outside = {stage.name: set(stage.outside(Place(Path("/nowhere"), QUICK))) for stage in STAGES}
    assert outside["data"] == {"python-functions"} and outside["adapt"] == {"smollm2-135m"} == outside["judge"]


def test_bytes_of_four_bits() -> None:
    model = GPT(GPTConfig(64, 32, num_hidden_layers=2, max_position_embeddings=32))
    for _, scheme in METHODS.values():
        found = quantize(model, "rtn", scheme)
        counted = sum(each.nbytes for name, each in found.model.state_dict().items()
                      if not name.endswith("weight_shape") and name != "lm_head.weight")  # fmt: skip
        assert predicted_bytes(found) == counted


def test_what_kills_cost() -> None:
    import random

    assert lost_by_a_kill([10]) == 5 and lost_by_a_kill([2] * 5) == 1 and lost_by_a_kill([6, 1, 1, 1, 1]) == 2
    assert seconds_to_finish([1.0], 1e-9) == pytest.approx(1.0) and seconds_to_finish([2.0], 1.0) == pytest.approx(
        6.389, abs=1e-3
    )
    dice = random.Random(0)
    runs = [finished_after([1.0, 0.5], 1.5, dice) for _ in range(4000)]
    mean = sum(runs) / len(runs)
    error = (sum((each - mean) ** 2 for each in runs) / len(runs)) ** 0.5 / len(runs) ** 0.5
    assert abs(mean - seconds_to_finish([1.0, 0.5], 1.5)) < 4 * error
    for wrong in ([], [0.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="give the seconds of some pieces"):
            lost_by_a_kill(wrong)
    with pytest.raises(ValueError, match="rate=0 must be above 0"):
        seconds_to_finish([1.0], 0)


def test_a_line_that_comes_again() -> None:
    assert repeats_a_line("a = 1\n    b = 2\n  a = 1") and not repeats_a_line("a = 1\nb = 2")
    assert not repeats_a_line("f(\n)\n)\n\n") and not repeats_a_line("")
