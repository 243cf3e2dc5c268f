"""`course run` and pytest give a notebook the same interpreter and the same environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_course import TinyCourse

# What only a session decides: its claims file and temporary folder, what pytest and the kernel say of themselves.
OWN = ("COURSE_CLAIMS", "TMPDIR", "PYTEST_", "JPY_", "CLICOLOR", "FORCE_COLOR", "PAGER", "GIT_PAGER", "TERM")
ASKS = """\
import json, os, sys
told = {"interpreter": sys.executable, "environment": dict(os.environ)}
open(os.environ["TOLD"], "w").write(json.dumps(told))"""


@pytest.mark.parametrize("threads", [None, "7"])
def test_both_choose_the_same(threads: str | None, tiny: TinyCourse, tmp_path: Path) -> None:
    """With a foreign "python3" among the user's kernels, and with or without the reader's number of threads."""
    lesson = tiny.lesson("1_A", ASKS)
    foreign = tmp_path / "jupyter/kernels/python3"
    foreign.mkdir(parents=True)
    kernel = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(kernel))
    ours = ("COURSE_", "PYTEST_", "OMP_NUM_THREADS")
    env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    env |= {"JUPYTER_PATH": str(tmp_path / "jupyter"), "COURSE_SCALE": "cpu", "COURSE_CACHE": "some/where"}
    env |= {} if threads is None else {"OMP_NUM_THREADS": threads}
    told = []
    for command in (
        ["course", "run"],
        ["pytest", "-q", "-pno:cacheprovider", "--rootdir=.", "--nbmake", "--nbmake-kernel=python3", str(lesson)],
    ):
        path = tmp_path / command[0]
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tiny.root,
            env={**env, "TOLD": str(path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told.append(json.loads(path.read_text()))
        told[-1]["environment"].pop("TOLD")
    first, second = ({k: v for k, v in each["environment"].items() if not k.startswith(OWN)} for each in told)
    assert first == second
    assert first["OMP_NUM_THREADS"] == (threads or "1") and first["COURSE_CACHE"] == str(tiny.root / "some/where")
    assert told[0]["interpreter"] == told[1]["interpreter"] == sys.executable
