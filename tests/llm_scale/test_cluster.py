"""The cluster's scripts; the rehearsals themselves are jobs of their own (`.github/workflows/cluster.yml`)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
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


@pytest.fixture
def hosts(monkeypatch):
    monkeypatch.syspath_prepend(str(CLUSTER))
    import cut_off
    import network

    return cut_off, network


def test_the_cut_skips_with_a_reason(hosts, monkeypatch, capsys):
    cut_off, network = hosts
    monkeypatch.setattr(sys, "argv", ["cut_off.py"])
    monkeypatch.setattr(network.os, "geteuid", lambda: 1000)
    assert cut_off.main() == 0
    assert capsys.readouterr().out == "skipped: network namespaces need root; try a container\n"
    monkeypatch.setattr(network.os, "geteuid", lambda: 0)
    monkeypatch.setattr(network.shutil, "which", lambda name: None)
    assert network.missing() == "ip not found; Debian's package iproute2 has it"


def namespaces(pid):
    """Those that a process has made and left."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if line.split()[0].endswith(f"-{pid}")]


def unless_there(network):
    if reason := network.missing():
        pytest.skip(reason)


def test_a_cable_that_is_pulled_and_put_back(hosts, tmp_path):
    _, network = hosts
    unless_there(network)
    assert namespaces(os.getpid()) == []  # none is left of the trial

    def reaches():
        ping = ["ip", "netns", "exec", two.names[0], sys.executable, "-c", CONNECT, network.ADDRESSES[1]]
        return subprocess.run(ping, capture_output=True, timeout=20).returncode == 0

    with network.TwoHosts() as two:
        server = two.start(1, [sys.executable, "-c", SERVE], os.environ, tmp_path / "said")
        end = time.monotonic() + 20
        while "ready" not in (tmp_path / "said").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert reaches()
        two.cut()
        assert not reaches()
        two.mend()
        assert reaches() and server.poll() is None
    assert not psutil.pid_exists(server.pid) and namespaces(os.getpid()) == []


SERVE = """
import socket
server = socket.create_server(("", 4000))
print("ready", flush=True)
while True:
    server.accept()
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 4000), timeout=2)"


def test_the_cut_leaves_nothing_when_it_is_stopped(hosts, tmp_path):
    """SIGTERM while both hosts start: their processes and namespaces go with it."""
    _, network = hosts
    unless_there(network)
    stopped = subprocess.Popen(
        [sys.executable, str(CLUSTER / "cut_off.py"), "--keep", str(tmp_path / "kept")], stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 60
    while not list((tmp_path / "kept").glob("whole-1-host2.out")):
        assert time.monotonic() < end and stopped.poll() is None
        time.sleep(0.1)
    running = [pid for name in namespaces(stopped.pid) for pid in network.TwoHosts.processes(name.split()[0])]
    assert running
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 143
    assert namespaces(stopped.pid) == []
    assert not [pid for pid in running if psutil.pid_exists(pid)]


def test_what_fails_a_cut(hosts):
    cut_off, _ = hosts
    record = {"said": ["a", "b"], "processes_left": [0, 0], "steps": [1, 2], "whole": [5.0, 4.0], "cut": [5.0, 4.0]}
    assert cut_off.what_failed(record) == []
    for key, value, words in (
        ("said", ["a", ""], "both hosts said"), ("processes_left", [0, 1], "left running"),
        ("steps", [1, 1], "every step once"), ("cut", [5.0, 4.1], "the losses of"), ("whole", [], "every step once"),
    ):  # fmt: skip
        assert any(words in claim for claim in cut_off.what_failed({**record, key: value}))


def test_the_record_of_the_cut_held(hosts):
    cut_off, _ = hosts
    record = json.loads((find_root() / "docs/results/cut_off.json").read_text("utf-8"))
    assert cut_off.what_failed(record) == []
    assert max(record["stopped_after_seconds"]) < cut_off.BOUND and "Timed out" in "".join(record["said"])


def test_scripts_are_executable():
    assert Path(CLUSTER / "job").stat().st_mode & 0o111
