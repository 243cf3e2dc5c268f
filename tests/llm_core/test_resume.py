"""A run that ends anywhere and is given more steps, or goes on from its best checkpoint, is the run that never ended.

Epochs of 10 or 11 batches: with several batches a step, the last step of an epoch has fewer. Validations and
checkpoints fall on it, and beside it. At a constant rate the length of a run does not matter.
"""

import json
import sys

import pytest
import torch
from llm_core.cli import main

STEPS = 9


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Run `babygpt fit` in this process; the losses of its steps so far, bit for bit, and its last checkpoint."""
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "own.txt"
    text.write_text("\n\n".join(f"document {n} about nothing at all {n * n}" for n in range(120)))

    def run(folder, *options):
        path = str(tmp_path / f"{folder}.losses")
        watch = json.dumps({"class_path": "loss_callbacks.Losses", "init_args": {"path": path}})
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 32, "attention_dropout": 0.2}
        given = {
            "data.corpus": f"text:{text}", "data.tokenizer": "bpe-300", "data.context": 32, "data.batch_size": 4,
            "model.warmup_steps": 0, "model.min_lr_ratio": 1.0, "trainer.accelerator": "cpu",
            "run.checkpoint_every": 3, "run.folder": folder, "trainer.callbacks+": watch,
            **{f"model.config.{key}": value for key, value in sizes.items()},
        }  # fmt: skip
        words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
        assert main(["fit", *words, *map(str, options)]) == 0
        lines = [json.loads(line) for line in (tmp_path / f"{folder}.losses").read_text().splitlines()]
        saved = torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True)
        return {line["step"]: line["loss"] for line in lines}, saved

    return run


def same(ours, theirs):
    assert ours[0] == theirs[0]
    for name, values in theirs[1]["state_dict"].items():
        assert torch.equal(ours[1]["state_dict"][name], values), name
    assert ours[1]["callbacks"]["RunCheckpoints"] == theirs[1]["callbacks"]["RunCheckpoints"]
    assert ours[1]["LLMDataModule"] == theirs[1]["LLMDataModule"]


# 3 steps an epoch with four batches each; 4 with three, the last batch left out; 10 with one.
@pytest.mark.parametrize(
    ("batches", "validation", "ends", "more"),
    [(4, 3, (3, 4, 6), []), (4, 2, (2, 3, 5), []), (3, 2, (4, 8), ["--data.drop_last", "true"]), (1, 3, (3, 7), [])],
)
def test_a_run_that_ended_and_is_given_more(batches, validation, ends, more, fit):
    how = ["--trainer.accumulate_grad_batches", batches, "--trainer.val_check_interval", validation, *more]
    whole = fit("whole", *how, "--trainer.max_steps", STEPS)
    for end in ends:
        fit(f"ends{end}", *how, "--trainer.max_steps", end)
        same(fit(f"ends{end}", *how, "--trainer.max_steps", STEPS, "--ckpt_path", "last"), whole)


@pytest.mark.parametrize("batches", [4, 1])
def test_epochs_that_ended_and_are_given_more(batches, fit):
    how = ["--trainer.accumulate_grad_batches", batches, "--trainer.max_steps", -1]
    how += ["--trainer.val_check_interval", 1.0, "--trainer.check_val_every_n_epoch", 1]
    whole = fit("whole", *how, "--trainer.max_epochs", 3)
    for end in (1, 2):
        fit(f"ends{end}", *how, "--trainer.max_epochs", end)
        same(fit(f"ends{end}", *how, "--trainer.max_epochs", 3, "--ckpt_path", "last"), whole)


@pytest.mark.parametrize("batches", [2, 4])
def test_several_stops_at_and_beside_an_epochs_end(batches, fit):
    """Each time Lightning's own count of epochs would be off by one more."""
    how = ["--trainer.accumulate_grad_batches", batches, "--trainer.val_check_interval", 5]
    in_epochs = [*how, "--trainer.max_steps", -1, "--trainer.max_epochs"]
    whole = fit("whole", *in_epochs, 3)
    an_epoch = len(whole[0]) // 3
    fit("cut", *in_epochs, 1)
    fit("cut", *how, "--trainer.max_steps", an_epoch + 1, "--ckpt_path", "last")
    fit("cut", *in_epochs, 2, "--ckpt_path", "last")
    same(fit("cut", *in_epochs, 3, "--ckpt_path", "last"), whole)


def test_going_on_with_a_finished_run_changes_nothing(fit):
    """Not its random numbers either."""
    fit("run", "--trainer.max_steps", 4)
    before = fit("run", "--trainer.max_steps", 4, "--ckpt_path", "last")
    whole = fit("whole", "--trainer.max_steps", 7)
    assert before[1]["global_step"] == 4
    same(fit("run", "--trainer.max_steps", 7, "--ckpt_path", "last"), whole)


def test_a_stop_inside_a_step_leaves_the_checkpoint_before(fit, tmp_path):
    (tmp_path / "stop_early.py").write_text(
        "import pytorch_lightning as pl\n\n\nclass Stop(pl.Callback):\n"
        "    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):\n"
        "        trainer.should_stop = trainer.global_step == 4 and module.inside_a_step\n"
    )
    how = ["--trainer.accumulate_grad_batches", 3]
    whole = fit("whole", *how, "--trainer.max_steps", 8)
    stop = json.dumps({"class_path": "stop_early.Stop"})
    sys.path.insert(0, str(tmp_path))
    try:
        stopped = fit("cut", *how, "--trainer.max_steps", 8, "--trainer.callbacks+", stop)
    finally:
        sys.path.remove(str(tmp_path))
    assert stopped[1]["global_step"] == 3  # of the last whole step that was kept
    same(fit("cut", *how, "--trainer.max_steps", 8, "--ckpt_path", "last"), whole)


def test_a_trial_keeps_nothing(fit, tmp_path):
    fit("run", "--trainer.max_steps", 3)
    kept = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()}
    fit("run", "--trainer.fast_dev_run", 2, "--ckpt_path", "last")
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()} == kept


@pytest.mark.parametrize(("batches", "validation"), [(4, 3), (4, 7), (3, 4)])
def test_going_on_from_the_best(batches, validation, fit, tmp_path):
    """It is made in a validation, and has whole steps behind it all the same."""
    how = ["--trainer.accumulate_grad_batches", batches, "--trainer.val_check_interval", validation]
    losses, whole = fit("whole", *how, "--trainer.max_steps", STEPS + 1)
    best = tmp_path / "whole" / "checkpoints" / "best.ckpt"
    begins = torch.load(best, weights_only=True)["global_step"]
    assert begins % validation == 0
    again, last = fit("again", *how, "--trainer.max_steps", STEPS + 1, "--ckpt_path", best)
    assert again == {step: loss for step, loss in losses.items() if step > begins}
    assert all(torch.equal(last["state_dict"][name], values) for name, values in whole["state_dict"].items())
