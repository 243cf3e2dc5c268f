"""A fine-tuning whose frozen weights are cut over two ranks: the losses of one device, half the weights, one file."""

from __future__ import annotations

import re

import pytest
import sharded_jobs as jobs
import torch
from llm_peft.cli import main
from llm_scale.ranks import Ranks

from course.plan.curriculum import find_root

CONFIG = find_root() / "Module-6/local-lora.yaml"
STEPS = 6  # after which an epoch's last rows are shared out otherwise


@pytest.fixture(scope="module")
def two():
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture
def places(base, examples) -> tuple[str, str]:
    return str(base), str(examples)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_two_ranks_are_one_device(method, two, places, tmp_path):
    """Losses and what is trained, with accumulation and clipping; saved on two ranks and gone on with on one."""
    path = str(tmp_path / "two.ckpt")
    alone = jobs.train(*places, method, 4, STEPS, 1)
    results = two.run(jobs.train, *places, method, 2, STEPS, 2, save=path)
    for result in results:
        assert result["losses"] == pytest.approx(alone["losses"], abs=2e-5)
        for name, values in alone["state"].items():
            torch.testing.assert_close(result["state"][name], values, rtol=0, atol=2e-5)
    if method != "qlora":  # whose norms and embedding alone have a size that counts
        assert 0.49 < results[0]["held"] / alone["held"] < 0.51
    rest = jobs.train(*places, method, 4, 8, 1, resume=path)
    whole = jobs.train(*places, method, 4, 8, 1)
    assert results[0]["losses"] + rest["losses"] == pytest.approx(whole["losses"], abs=2e-5)


def test_from_one_device_to_two(two, places, tmp_path):
    path = str(tmp_path / "one.ckpt")
    jobs.train(*places, "lora", 4, 3, 1, save=path)
    whole = jobs.train(*places, "lora", 4, STEPS, 1)
    results = two.run(jobs.train, *places, "lora", 2, STEPS, 2, resume=path)
    assert results[0]["losses"] == pytest.approx(whole["losses"][3:], abs=2e-5)


def test_accumulated_batches(two, places):
    alone = jobs.train(*places, "lora", 4, 3, 1)
    results = two.run(jobs.train, *places, "lora", 1, 3, 2, accumulate_grad_batches=2)
    assert results[0]["losses"] == pytest.approx(alone["losses"], abs=2e-5)


def refusal(train, *args, **options) -> str:
    """What a rank says no with. All ranks say the same, so they live on and serve the next test."""
    try:
        train(*args, **options)
    except ValueError as error:
        return str(error)
    return "no refusal"


def shards_nothing(base: str, examples: str) -> None:
    from pytorch_lightning.strategies import ModelParallelStrategy

    jobs.train(base, examples, "lora", 2, 1, 2, strategy=ModelParallelStrategy())


def half_of_it(base: str, examples: str) -> None:
    from unittest import mock

    import llm_peft.local_lora as module

    with mock.patch.object(module, "shard_blocks", lambda model, mesh: None):  # as a library that shards nothing would
        jobs.train(base, examples, "lora", 2, 1, 2)


def test_lightnings_default_is_refused(two, places):
    for said in two.run(refusal, shards_nothing, *places):
        assert "would cut the weights over 1 of 2 ranks" in said


def test_four_bits_of_our_own_are_refused(two, places):
    """They are buffers, of which every rank would hold all."""
    for said in two.run(refusal, jobs.train, *places, "qlora", 2, 1, 2, library="ours"):
        assert "keeps four bits in buffers, which fsdp does not cut" in said


def test_a_rank_that_holds_too_much_is_refused(two, places):
    for said in two.run(refusal, half_of_it, *places):
        assert re.search(r"a rank holds .* numbers, and fsdp on 2 ranks leaves it", said), said


def test_the_command_on_two_ranks(base, examples, tmp_path, capfd):
    options = [
        "--config", str(CONFIG), "--data.train", str(examples), "--model.base", str(base), "--data.context", "128",
        "--data.batch_size", "2", "--run.folder", str(tmp_path / "run"), "--accelerator", "cpu", "--devices", "2",
        "--trainer.val_check_interval", "4", "--model.warmup_steps", "1",
    ]  # fmt: skip
    assert main(["fit", *options]) == 0
    said = capfd.readouterr()
    assert "the adapter of its best checkpoint" in said.out and said.err == ""
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    elsewhere = ["--run.folder", str(tmp_path / "other"), "--model.fine_tune.lora.r", "0"]
    assert main(["fit", *options, *elsewhere]) == 1
    err = capfd.readouterr().err
    assert err.startswith("local-lora: ") and "a rank is a whole number" in err and err.count("\n") == 1
