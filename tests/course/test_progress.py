"""One line that moves in a terminal, and one clean line in a file."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from course import progress
from course.notebook.normalise import last_frames


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)


def test_a_terminal_sees_each_frame_and_ends_with_one_line() -> None:
    out = Terminal()
    line = progress.Line("training", 3, out)
    for step in (1, 2, 3):
        line.update(step, {"loss": 3.0 - step})
    line.close()
    line.close()
    assert out.getvalue().count("\r") == 4 and out.getvalue().count("\n") == 1
    assert "it/s" in out.getvalue()
    assert last_frames(out.getvalue()) == "training 3/3  loss 0\n"


def test_a_shorter_frame_covers_a_longer_one() -> None:
    out = Terminal()
    line = progress.Line("x", None, out)
    line.update(1, {"long": 123456.0})
    line.close()
    shown = out.getvalue().split("\r")
    assert len(shown[-1].rstrip("\n")) >= len(shown[-2].rstrip())


def test_a_file_gets_the_last_line_alone() -> None:
    out = io.StringIO()
    line = progress.Line("training", 10, out)
    for step in range(1, 11):
        line.update(step, {"loss": 1 / step})
    line.close()
    assert out.getvalue() == "training 10/10  loss 0.1\n"


def test_track_counts_and_passes_items_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().out == "letters 3/3\n"


def test_track_of_a_generator_has_no_total(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(progress.track((i for i in range(4)), "numbers")) == 6
    assert capsys.readouterr().out == "numbers 4\n"


def test_an_interrupted_loop_still_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(progress.track(items(), "work", 5))
    assert capsys.readouterr().out == "work 1/5\n"


def test_a_loop_left_early_still_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    for item in progress.track(range(5), "work"):
        if item == 2:
            break
    assert capsys.readouterr().out == "work 2/5\n"
