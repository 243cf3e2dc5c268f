"""A lesson's view of the records: the last run with where it was made, or how to make one."""

import json

import pytest

from course.errors import CourseError
from course.record import results


def test_the_last_run_or_the_command_that_makes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "find_root", lambda: tmp_path)
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    assert results.recorded("kernels") is None
    assert capsys.readouterr().out == "not measured on a GPU yet; `course record --only kernels` does it\n"
    runs = [{"hardware": name, "date": "2026-01-02", "versions": {"torch": "2.13.0"}, "rows": [name]} for name in "ab"]
    (folder / "kernels.json").write_text(json.dumps(runs), encoding="utf-8")
    found = results.recorded("kernels")
    assert found is not None and found["rows"] == ["b"]
    assert capsys.readouterr().out == "recorded on 2026-01-02: b, torch 2.13.0\n"
    (folder / "kernels.json").write_text('{"rows": []}', encoding="utf-8")
    with pytest.raises(CourseError, match=r"kernels.json holds no records"):
        results.recorded("kernels")
