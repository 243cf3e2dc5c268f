"""Fixtures: a course of tiny notebooks in a temporary folder, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_course import TinyCourse


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyCourse:
    """An empty course; the working folder is its root."""
    root = tmp_path / "the course"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.delenv("COURSE_CLAIMS", raising=False)
    return TinyCourse(root)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command line in this process; gives its exit status, standard output and standard error."""
    from course import cli

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(arguments)
        said = capsys.readouterr()
        return status, said.out, said.err

    return call
