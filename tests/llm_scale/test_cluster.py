"""The cluster's scripts; the rehearsal itself is a job of its own (`.github/workflows/cluster.yml`)."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from llm_scale import figures

from course.plan.curriculum import find_root

CLUSTER = find_root() / "Module-5/cluster"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(CLUSTER))
    import rehearse
    import slurm

    return rehearse, slurm


def test_it_skips_with_a_reason(modules, monkeypatch, capsys):
    rehearse, slurm = modules
    monkeypatch.setattr(slurm.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["rehearse.py"])
    assert rehearse.main() == 0
    assert capsys.readouterr().out == "skipped: its daemons need root; try a container\n"
    monkeypatch.setattr(slurm.os, "geteuid", lambda: 0)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    assert slurm.missing().startswith("munged, slurmctld") and "--install" in slurm.missing()


def test_a_wait_ends(modules):
    rehearse, _ = modules
    assert rehearse.wait_until(lambda: 7, "seven", 1) == 7
    with pytest.raises(rehearse.TooLong, match=r"never: not within 0\.2 s"):
        rehearse.wait_until(lambda: False, "never", 0.2)


def test_a_log_that_is_being_written(modules, tmp_path):
    rehearse, _ = modules
    assert rehearse.last_step(tmp_path / "log") == 0
    (tmp_path / "log").write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss"')
    assert rehearse.last_step(tmp_path / "log") == 1


def test_the_job_hands_its_arguments_on(tmp_path):
    """With stand-ins for Slurm's commands: what srun is asked to run."""
    for name, text in (
        ("scontrol", 'case "$2" in hostnames) echo node7;; node) echo "   NodeAddr=10.0.0.7 NodeHostName=x";; esac'),
        ("srun", 'printf "%s\\n" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "41",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_RESTART_COUNT": "3", "RANKS": "4",
    }  # fmt: skip
    done = subprocess.run([CLUSTER / "job", "--config", "a b.yaml"], env=environment, capture_output=True, text=True)
    words = done.stdout.splitlines()
    assert done.returncode == 0 and words[:4] == ["--kill-on-bad-exit=1", "python", "-m", "torch.distributed.run"]
    for option, value in (
        ("--nnodes", "2"), ("--nproc-per-node", "4"), ("--rdzv-endpoint", "10.0.0.7:20041"), ("--rdzv-id", "41-3"),
        ("--ckpt_path", "last"), ("--config", "a b.yaml"),
    ):  # fmt: skip
        assert words[words.index(option) + 1] == value
    assert "--local-addr" not in words


def test_the_record_is_of_a_rehearsal_that_held():
    record = json.loads((find_root() / "docs/results/rehearsal.json").read_text("utf-8"))
    assert record["steps"] == list(range(1, len(record["whole"]) + 1))
    assert max(abs(a - b) for a, b in zip(record["whole"], record["cut"], strict=True)) < 1e-3
    lost = [event["what"] for event in record["events"] if re.search("killed|lost", event["what"])]
    assert lost == ["worker of rank 1 killed", "node2 lost"]
    at = [each["step"] for each in record["progress"]]
    assert sum(after < before for before, after in pairwise(at)) == 2  # it went back twice, and on again
    assert len(figures.interrupted(record).axes) == 2


def test_scripts_are_executable():
    assert Path(CLUSTER / "job").stat().st_mode & 0o111
