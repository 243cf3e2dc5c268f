"""Ranks: what a cell sends them comes back, errors name their rank, and nothing is left running."""

import os
import shutil
import time
import types

import parallel_jobs as jobs
import psutil
import pytest
import torch
import torch.distributed as dist
from llm_scale.ranks import RankError, Ranks


def test_a_function_of_a_cell(two, capsys):
    factor = torch.tensor([3.0])

    def scaled(plus):
        print("here")
        return factor * dist.get_rank() + plus

    assert [value.item() for value in two.run(scaled, 1)] == [1, 4]
    assert capsys.readouterr().out.splitlines() == ["[rank 0] here", "[rank 1] here"]


def test_a_function_that_asks_for_a_config(two):
    """cloudpickle takes it to need torch.distributed.config, a module with a class of its own."""
    model = types.SimpleNamespace(config=7)
    exec("def asked(model):\n    return model.config + dist.get_rank()", space := {"dist": dist})  # as a cell would
    assert two.run(space["asked"], model) == [7, 8]


def test_errors_deaths_and_hangs_end_within_seconds_and_leave_nothing():
    with Ranks(2, timeout=4) as ranks:
        for job, words in (
            (jobs.fails_on_one, r"rank 1: ValueError: rank 1 has had enough \(line \d+ of fails_on_one\)"),
            (jobs.dies, "rank 1: it died without a word"),
            (jobs.hangs, "hangs is not done on rank 0: do all ranks call the same collectives"),
        ):
            pids = [pid for pid in ranks.run(os.getpid)]
            start = time.monotonic()
            with pytest.raises(RankError, match=words):
                ranks.run(job)
            assert time.monotonic() - start < 10
            _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
            assert not alive
        pids = ranks.run(os.getpid)  # the next call starts new ones
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert not alive


def test_no_ranks():
    with pytest.raises(ValueError, match="at least one"):
        Ranks(0)


def test_ranks_that_cannot_start(monkeypatch):
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with pytest.raises(RankError, match="did not start"):
        Ranks(2).run(os.getpid)
