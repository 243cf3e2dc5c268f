"""The budget against live tensors, against PyTorch's own estimate, and against peaks recorded on a GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import parallel_jobs as jobs
import pytest
import torch
from llm_core.config import GPTConfig
from llm_core.costs.counts import CONFIGS, num_parameters
from llm_core.costs.memory import held_bytes, peak_bytes
from llm_core.model import GPT
from llm_scale.budget import Setup, adapter_parameters, block_parameters, budget
from llm_scale.cli import main
from llm_scale.planner import MODELS, WORKED, advice, plan, table, worked_example
from torch import nn
from tracked import CONFIG as TRACKED

from course.plan.curriculum import find_root
from course.record.results import read_runs


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_live_tensors(kind, two):
    expected = budget(jobs.CONFIG, Setup(kind, 2), 4, 16)
    for rank, found in enumerate(two.run(jobs.library_held, kind)):
        if kind == "fsdp" and rank == 1:  # of 61 rows of the embedding it has one less
            missing = jobs.CONFIG.hidden_size * torch.tensor([4, 4, 8])
            assert (torch.tensor(list(found.values())) + missing).tolist() == [
                expected.held["weights"], expected.gradients, expected.held["states"]
            ]  # fmt: skip
            continue
        assert found == {
            "weights": expected.held["weights"], "gradients": expected.gradients, "states": expected.held["states"]
        }  # fmt: skip


def test_the_buckets_of_ddp(two):
    """A second copy of the gradients, on each rank."""
    assert two.run(jobs.bytes_of_ddp) == [budget(jobs.CONFIG, Setup("ddp", 2), 4, 16).held["buckets"]] * 2


@pytest.mark.parametrize(("ranks", "batch", "length", "checkpointing"), [
    (2, 1, 32, False), (2, 4, 128, False), (8, 1, 32, False), (8, 4, 128, True),
])  # fmt: skip
def test_pytorchs_estimate(ranks, batch, length, checkpointing):
    """Within 2%: small gradients of activations, which come and go, are not in the formula."""
    command = [sys.executable, str(Path(__file__).with_name("tracked.py")), str(ranks), str(batch), str(length),
               str(checkpointing)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    expected = budget(TRACKED, Setup("fsdp", ranks, checkpointing=checkpointing), batch, length)
    assert expected.bytes - expected.held["states"] == pytest.approx(json.loads(done.stdout.splitlines()[-1]), rel=0.02)


def test_adapters_on_this_machine():
    """Held bytes exactly; the peak within 3%."""

    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.A = nn.Parameter(torch.randn(16, base.in_features) / 100)
            self.B = nn.Parameter(torch.zeros(base.out_features, 16))

        def forward(self, x):
            return self.base(x) + (x @ self.A.T) @ self.B.T

    config = GPTConfig(512, 128, num_hidden_layers=4, num_attention_heads=4, tie_word_embeddings=False)
    model = GPT(config).requires_grad_(False)
    for part in [part for layer in model.model.layers for part in (layer.self_attn, layer.mlp)]:
        for name, child in list(part.named_children()):
            setattr(part, name, Adapted(child))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    ids = torch.randint(512, (4, 128))

    def step():
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    expected, found = budget(config, Setup(method="lora"), 4, 128), held_bytes(model, optimizer)
    assert adapter_parameters(config, 16) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert expected.held["weights"] == found["weights"]
    assert 0 <= found["states"] - expected.held["states"] <= 8 * len(optimizer.state)  # a step's number for each tensor
    assert expected.bytes - sum(expected.held.values()) == pytest.approx(peak_bytes(step), rel=0.03)


def test_recorded_peaks():
    """Of Module 3's lesson 5, on an H200, within 5%: old gradients were still there in the forward pass then."""
    compared = 0
    for run in read_runs(find_root() / "docs/results/train_steps.json"):
        for row in run["rows"]:
            if row.get("precision") != "bf16-true" or "peak_gb" not in row:
                continue
            setup = Setup(precision="bf16-true", loss_chunk=row["loss_chunk"])
            found = budget(CONFIGS[row["model"]], setup, row["rows"], row["context"])
            moments = {**found.moments, "forward end": found.moments["forward end"] + found.gradients}
            assert max(moments.values()) == pytest.approx(row["peak_gb"] * 1e9, rel=0.05), row
            compared += 1
    assert compared >= 3


def test_bytes_a_parameter():
    """16 of fp32 and bf16-mixed, 8 of bf16-true, and what each stage leaves of it for one of eight ranks."""
    P = num_parameters(MODELS["70B"])
    for precision, per in (("fp32", 16), ("bf16-mixed", 16), ("bf16-true", 8)):
        found = budget(MODELS["70B"], Setup(precision=precision), 1, 8)
        assert sum(found.held.values()) + found.gradients == per * P
    for strategy, per in (("zero1", 4 + 4 + 8 / 8), ("zero2", 4 + 12 / 8), ("fsdp", 16 / 8)):
        found = budget(MODELS["70B"], Setup(strategy, 8), 1, 8)
        assert sum(found.held.values()) + found.gradients == pytest.approx(per * P, rel=1e-9)
    assert block_parameters(TRACKED) == sum(p.numel() for p in GPT(TRACKED).model.layers[0].parameters())


def test_plan():
    start = time.perf_counter()
    rows = plan("70B", 2, 80)
    assert time.perf_counter() - start < 1
    assert not any(row.batch for row in rows if not row.setup.offload)
    rows = plan("7B", 2, 80, 2048)
    by_name = {row.name: row for row in rows}
    assert by_name["ddp, bf16-mixed"].batch == 0 and by_name["fsdp, bf16-master"].batch > 0
    for row in rows:  # what is said to fit does, and one row or position more does not
        free = 80e9 * 0.92
        config, setup = MODELS["7B"], row.setup
        if row.batch:
            assert (
                budget(config, setup, row.batch, 2048).bytes <= free < budget(config, setup, row.batch + 1, 2048).bytes
            )
        if row.context:
            assert budget(config, setup, 1, row.context).bytes <= free < budget(config, setup, 1, row.context + 1).bytes
    assert len(table(rows, 80).splitlines()) == len(rows) + 1
    assert {name for name, *_ in worked_example()} == set(WORKED) <= set(MODELS)


def test_advice():
    assert advice("1B", 1, 80, 2048) == "single, bf16-mixed: rows a GPU at the most: 10"
    assert advice("7B", 1, 24, 2048) == "nothing fits in full; lora does"
    assert advice("7B", 1, 16, 2048) == "nothing fits in full; qlora does"
    assert "on 1 of 40 GB; 2 of them hold it" in advice("70B", 1, 40, 2048, "qlora")
    assert "take a smaller model" in advice("70B", 1, 1, 2048)


@pytest.mark.parametrize(("options", "words"), [
    ({"strategy": "magic"}, "strategy='magic' is none of single, ddp"),
    ({"strategy": "single", "ranks": 2}, "a single device is one rank"),
    ({"strategy": "ddp", "ranks": 2, "offload": True}, "take strategy='fsdp'"),
    ({"precision": "bf16-master"}, "FSDP2's policy"),
])  # fmt: skip
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        Setup(**options)


def test_machines_that_cannot_be():
    for arguments, words in (
        (("9B", 1, 80), "no model '9B'"), (("7B", 0, 80), "at least one GPU"), (("7B", 1, 80, 10**6), "ask for fewer"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            plan(*arguments)


def test_the_command(capsys):
    assert main(["plan", "7B", "--gpus", "2", "--memory", "80", "--time", "2048"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == table(plan("7B", 2, 80, 2048), 80).splitlines() and lines[-1].startswith("fsdp, bf16-mixed")
    assert main(["plan", "9B"]) == 1
    assert capsys.readouterr().err.startswith("llm-scale: no model '9B'; take one of 1M")
