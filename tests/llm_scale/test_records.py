"""The race of strategies and the sections of `course record`: what is timed, what is predicted, what is left out."""

import importlib.util
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import record_jobs as jobs
import torch
import torch.distributed as dist
from llm_core.costs.counts import CONFIGS, flops_per_token
from llm_core.costs.speed import peak_flops
from llm_precision.benchmark import Row
from llm_precision.levers import Levers
from llm_scale.budget import Setup
from llm_scale.deepspeed_tools import why_not
from llm_scale.records import on_ranks, one_gpu, rank, two_gpus
from llm_scale.records.contenders import CONTENDERS
from llm_scale.records.on_ranks import Entry, Turns
from llm_scale.records.task import Task
from llm_scale.records.watch import Watch

from course.record import Setting

TOY = Setting("cpu", True)
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "Module-5" / "race" / "strategies.py"


# -- a turn -------------------------------------------------------------------------------------------------------


def test_a_step_that_sleeps_is_seen_and_steps_before_are_not(two):
    """Of the slowest rank: only rank 1 sleeps, and both are told of it."""
    found = two.run(jobs.slept, 0.1, before=1.0, rank=1)
    assert found[0] == found[1] and 0.1 <= found[0].seconds < 0.5 and found[0].processor < 0.05
    assert two.run(jobs.slept, 0.2)[0].seconds > found[0].seconds


def test_a_turn_that_ends_early_is_no_measure(two):
    with pytest.raises(Exception, match="1 steps were made, and 2 were asked for"):
        two.run(jobs.stops_early)


def test_bytes_of_a_gpu(monkeypatch):
    """Of the steps that count, above what was there before the turn."""
    held, calls = {"highest": 900}, []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["highest"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(highest=300))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(dist, "barrier", lambda: calls.append("barrier"))
    watch = Watch("cuda", 1, 2)
    for _ in range(3):
        watch.step_done()
    assert watch.taken.peak == 200 and calls == ["synchronize", "barrier", "synchronize"]


def test_all_contenders_train_alike(two):
    """Losses of four steps, one a batch. Weight decay on norms, which ZeRO by hand has too, is far below the bound."""
    expected = two.run(jobs.losses, "ddp")[0]
    kinds = [("fsdp2",), ("fsdp2", False), ("ours_ddp",), ("ours_zero", 1), ("ours_zero", 2), ("ours_zero", 3)]
    for kind in kinds + ([] if why_not() else [("deepspeeds", stage) for stage in (1, 2, 3)]):
        assert two.run(jobs.losses, *kind)[0] == pytest.approx(expected, abs=2e-5), kind
    found, steps = two.run(jobs.losses_of_the_trainer)[0]
    assert steps == len(found) == 4
    assert found[:2] == pytest.approx(expected[:2], abs=2e-5)  # from then on its learning rate falls
    assert found[2:] == pytest.approx(expected[2:], abs=1e-2) and found != expected
    assert abs(expected[3] - expected[0]) > 1e-2


def test_a_turn_leaves_nothing_behind(two):
    """Else the next one would have less memory, or none."""
    assert two.run(jobs.left, ["fsdp2", "ddp", "ours-ddp", "ours-zero2", "ours-zero3"])[0] == dict.fromkeys(
        ["fsdp2", "ddp", "ours-ddp", "ours-zero2", "ours-zero3"], 0
    )


def test_predicted_bytes_are_those_measured(two):
    """Of a step that activations lead. On a CPU the fast forms of norms and rotations keep less than is counted, and
    the profiler does not see what gloo's thread frees: 0.95 to 0.98 of the predicted bytes were seen."""
    names = ("fsdp2", "fsdp2-no-reshard", "ddp")
    found = two.run(jobs.peaks, names, Task("1M", 4, 256))[0]
    for name, (measured, predicted) in found.items():
        assert 0.93 < measured / predicted < 1.02, name
    for number in (0, 1):
        assert found["fsdp2"][number] < found["fsdp2-no-reshard"][number] < found["ddp"][number]


# -- one GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_row_of_full_training(checkpointing):
    row = one_gpu.measured(TOY, "row", "1M", 64, Setup(checkpointing=checkpointing).levers)
    assert row["peak"] == pytest.approx(row["predicted_peak"], rel=0.03)
    other = Setup(checkpointing=not checkpointing)
    assert (row["peak"] < one_gpu.budget(CONFIGS["1M"], other, 64, 32).bytes * 0.9) is checkpointing
    assert row["tokens_per_second"] == pytest.approx(64 * 32 / row["seconds"]["median"])
    assert row["mfu"] is None  # no dense peak of a CPU is in the table


def test_what_is_predicted_not_to_fit_is_said_and_not_tried(monkeypatch):
    monkeypatch.setattr(one_gpu, "build_step", lambda *_: pytest.fail("it was tried"))
    row = one_gpu.measured(TOY, "row", "1M", 2, Setup().levers, memory=10**7)
    assert row["missing"] == "0.0 GB predicted, and the device has 0.0 GB" and row["predicted_peak"] > 10**7
    assert "seconds" not in row


def test_a_memory_that_was_not_enough_is_a_row(monkeypatch):
    def build(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(one_gpu, "build_step", build)
    rows = list(one_gpu.full_training(TOY))
    assert [row["missing"] for row in rows] == ["out of memory"] * 2


@pytest.mark.parametrize("model", one_gpu.ROWS)
def test_the_full_sizes_step_on_meta(model, monkeypatch):
    """A tensor that is left on the CPU raises there. Not in the section's precision and not with its optimiser, which
    that device has not got."""
    steps = []

    def step(variants, *_):
        steps.append(variants[0].build()())
        return [Row(variants[0].name)]

    monkeypatch.setattr(one_gpu, "benchmark", step)
    for checkpointing in (False, True):
        levers = Levers("bf16-true", optimizer="foreach", checkpointing=checkpointing)
        row = one_gpu.measured(Setting("meta", False), model, model, one_gpu.ROWS[model], levers, memory=10**12)
        assert "missing" not in row and steps.pop().device.type == "meta"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_task_of_ranks_on_meta(checkpointing, monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    task = Task("7B", 1, 2048, checkpointing=checkpointing, device="meta")
    model = task.build_model()
    task.mean_loss(model, task.batches()[0]).backward()
    assert all(parameter.grad.device.type == "meta" for parameter in model.parameters())


def test_seven_billion_fit_where_they_were_meant_to():
    """112 GB and activations: on an H200 or two H100s, with checkpointing; DDP on neither card."""
    memory, gpus = 80e9, Setting("cuda", False)
    of = {}
    for model, checkpointing in (("1B", False), ("7B", True)):
        for entry in two_gpus.entries(model, 4, checkpointing, gpus):
            of[model, entry.row] = CONTENDERS[entry.contender].predicted(entry.task, 2)
    assert of["1B", "DDP"] < memory and of["7B", "FSDP2, not resharded"] < memory < of["7B", "DDP"]
    assert of["1B", "FSDP2"] < of["1B", "FSDP2, not resharded"] < of["1B", "DDP"]


def test_one_gpu_is_not_enough_for_ranks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert list(two_gpus.seven_billion(Setting("cuda", False))) == [
        {"row": "all", "missing": "2 GPUs are needed, and torch sees 1"}
    ]


def test_tokens_and_utilisation_of_a_row(monkeypatch):
    """Tokens of all ranks; FLOPs of one over its own GPU's dense peak."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    row = rank.described(Entry("row", "fsdp2", Task("1B", 4, 2048, "bf16-master", device="cuda")), seconds=0.5)
    assert row["tokens_per_second"] == 2 * 4 * 2048 / 0.5 and row["peak_flops"] == peak_flops("NVIDIA H200") == 989e12
    assert row["mfu"] == pytest.approx(flops_per_token(CONFIGS["1B"], 2048) * 4 * 2048 / 0.5 / 989e12)


# -- several contenders on ranks ----------------------------------------------------------------------------------


def test_a_contender_that_fails_is_a_row_and_the_others_are_measured(monkeypatch):
    """Two ranks tell of the second; what was not measured then is measured on new ranks."""
    starts = []

    def ranks(number, module, arguments):
        names = [each["row"] for each in json.loads(Path(arguments[0]).read_text())["entries"]]
        starts.append(names)
        with Path(arguments[1]).open("a") as file:
            if "b" in names:
                file.write('{"row": "b", "missing": "out of memory, on rank 0"}\n' * 2 + '{"row": "half')
            else:
                file.writelines(json.dumps({"row": name, "seconds": 1.0}) + "\n" for name in names)
        yield
        return 1

    monkeypatch.setattr(on_ranks, "watched_ranks", ranks)
    entries = [Entry(name, "fsdp2", jobs.TASK) for name in "abc"]
    found = list(on_ranks.measure(entries, 2, Turns(), 10**12))
    assert [row["row"] for row in found] == ["b", "a", "c"] and starts == [["a", "b", "c"], ["a", "c"]]


def test_ranks_that_end_without_a_word(monkeypatch):
    monkeypatch.setattr(on_ranks, "watched_ranks", lambda *_: iter(()))
    with pytest.raises(RuntimeError, match="ended before a row was there"):
        list(on_ranks.measure([Entry("a", "fsdp2", jobs.TASK)], 2, Turns(), 10**12))


def test_what_does_not_fit_a_rank_is_not_tried(monkeypatch):
    monkeypatch.setattr(on_ranks, "watched_ranks", lambda *_: pytest.fail("it was tried"))
    (row,) = on_ranks.measure([Entry("a", "ddp", jobs.TASK)], 2, Turns(), 10**6)
    assert row["missing"].endswith("GB predicted, and a rank has 0.0 GB")
    (row,) = on_ranks.measure([Entry("a", "ddp", replace(jobs.TASK, precision="bf16-master"))], 2, Turns(), 10**12)
    assert row["missing"] == "bf16-master is a policy of fully_shard; take bf16-mixed"


def test_a_rank_tells_why_before_it_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(rank.time, "sleep", lambda _: None)

    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(SystemExit) as caught:
        rank.tried(Entry("a", "fsdp2", jobs.TASK), tmp_path / "told", fails)
    assert caught.value.code == 1
    told = json.loads((tmp_path / "told").read_text())
    assert told == {"row": "a", "model": "1M", "missing": "out of memory, on rank 1"}


def test_a_rank_does_not_outlive_who_wanted_its_rows(monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ended = threading.Event()

    def end(code):
        ended.set()
        threading.Event().wait()  # the thread that looks goes no further

    monkeypatch.setattr(rank.os, "_exit", end)
    monkeypatch.setattr(rank.time, "sleep", lambda _: None)
    rank.end_without(gone.pid)
    assert ended.wait(10)


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def race(monkeypatch):
    spec = importlib.util.spec_from_file_location("race_strategies", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["strategies.py", *map(str, arguments)])
        module.main()

    return main


def test_the_race_prints_and_writes_a_row_a_contender(race, capfd, tmp_path):
    names, path = ["fsdp2", "ours-zero2", "deepspeed-zero1"], tmp_path / "race.json"
    size = ["--model", "1M", "--rows", 1, "--time", 32, "--rounds", 2, "--warmup", 1, "--steps", 1]
    race("--only", *names, *size, "--record", path)
    lines = {line.split()[0]: line for line in capfd.readouterr().out.splitlines()[1:]}
    assert lines.keys() == set(names)
    (run,) = json.loads(path.read_text())
    assert (run["model"], run["ranks"], run["time"], run["precision"]) == ("1M", 2, 32, "fp32")
    assert f"--record {path}" in run["command"] and run["hardware"]
    rows = {row["row"]: row for row in run["contenders"]}
    if why_not():
        assert why_not() in lines["deepspeed-zero1"] and rows["deepspeed-zero1"]["missing"] == why_not()
    for name in names[:2]:
        row = rows[name]
        assert len(row["all_seconds"]) == 2 and row["peak"] > 8 * row["parameters"]
        assert row["tokens_per_second"] == pytest.approx(2 * 32 / row["seconds"])
        assert f"{row['tokens_per_second']:,.0f}" in lines[name]
    ratios = [a / b for a, b in zip(rows["ours-zero2"]["all_seconds"], rows["fsdp2"]["all_seconds"], strict=True)]
    assert rows["ours-zero2"]["seconds_over_fsdp2"]["median"] == pytest.approx(sum(ratios) / 2)
    assert 0.1 < rows["ours-zero2"]["processor_over_fsdp2"]["median"] < 10


@pytest.mark.parametrize(("wrong", "words"), [
    (("--only", "fsdp3"), "--only fsdp3: no such contender; take of fsdp2, fsdp2-lightning"),
    (("--ranks", 0), "--ranks 0: take 1 or more"),
    (("--rounds", 0), "rounds=0 must be 1 or more"),
    (("--model", "1M", "--time", 512), "time=512: take 1 row or more, and 2 to 256 positions"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(race, capsys, wrong, words):
    with pytest.raises(SystemExit) as caught:
        race(*wrong)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_more_ranks_than_gpus(race, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit):
        race("--ranks", 2)
    assert "--ranks 2: take 1 or more, at most the 1 GPUs" in capsys.readouterr().err.splitlines()[-1]


def test_a_task_that_cannot_be():
    with pytest.raises(ValueError, match="no model '2M'; take one of 1M"):
        Task("2M", 1, 8)
    with pytest.raises(ValueError, match="precision='fp8' is none of fp32"):
        Task("1M", 1, 8, "fp8")


def test_the_readme_shows_the_record():
    """Tokens a second, both factors and the peak of each row of its table."""
    run, *_ = json.loads((ROOT / "docs/results/strategies_race.json").read_text("utf-8"))
    table = {
        line.split("`")[1]: [cell.strip() for cell in line.split("|")[2:-1]]
        for line in (ROOT / "Module-5/README.md").read_text("utf-8").splitlines()
        if line.startswith("| `") and line.split("`")[1] in CONTENDERS
    }
    rows = {row["row"]: row for row in run["contenders"]}
    assert table.keys() == rows.keys()
    for name, (tokens, clock, processor, peak, _) in table.items():
        row = rows[name]
        assert tokens == f"{row['tokens_per_second']:,.0f}" and peak == f"{row['peak'] / 2**20:.0f}"
        assert clock.split()[0] == f"{row['seconds_over_fsdp2']['median']:.2f}"
        assert processor == f"{row['processor_over_fsdp2']['median']:.2f}"
