"""`align` from a shell: from a task's files to a model that was taught three ways, stopped and killed in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch
import yaml
from llm_align.cli import FITS, main
from llm_align.command.fit import KINDS
from llm_core.store.checkpoints import read_checkpoint
from llm_core.store.registry import load_model
from transformers import AutoModelForCausalLM

from course.plan.curriculum import find_root

MODULE = find_root() / "Module-8"
FILE = {"sft": "sft", "reward": "pairs", "dpo": "pairs", "grpo": "prompts", "ppo": "prompts"}
REWARD = "align_jobs:by_length"


def options(command, base, files, folder, *changes):
    made = [
        "--config", str(MODULE / f"{command}.yaml"), "--data.train", str(files / f"{FILE[command]}.jsonl"),
        "--model.base", str(base), "--run.folder", str(folder), "--data.context", "64", "--model.warmup_steps", "1",
        "--trainer.accelerator", "cpu", "--model.learning_rate", "1e-2", "--model.fine_tune.lora.r", "4",
    ]  # fmt: skip
    if FILE[command] == "prompts":
        made += [
            "--model.reward", REWARD, "--model.policy.max_new_tokens", "6", "--trainer.max_steps", "4",
            "--trainer.accumulate_grad_batches", "1", "--data.batch_size", "8", "--data.prompts_per_round",
            "4" if command == "grpo" else "16", "--trainer.val_check_interval", "2", "--run.checkpoint_every", "1",
            "--data.val_percent", "15",
        ]  # fmt: skip
    return [command, *made, *changes]


def test_from_files_to_a_model(base, files, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(find_root() / "tests/llm_align"))
    for command in FITS:
        assert main(options(command, base, files, tmp_path / command)) == 0, capsys.readouterr().err
        said = capsys.readouterr()
        kind = "ForSequenceClassification" if command == "reward" else "ForCausalLM"
        assert f"AutoModel{kind} of transformers loads it" in said.out
        config = json.loads((tmp_path / command / "model/config.json").read_text())
        assert config["architectures"] == [f"Llama{kind}"]
    ids = torch.arange(30)[None]
    plain = load_model(base)[0](ids).logits
    for command in ("sft", "dpo", "ppo", "grpo"):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / command / "model")(ids).logits
        torch.testing.assert_close(load_model(tmp_path / command / "model")[0](ids).logits, theirs, rtol=0, atol=1e-4)
        assert (theirs - plain).abs().max() > 0.01

    made = options("ppo", tmp_path / "sft/model", files, tmp_path / "again", "--model.critic",
                   str(tmp_path / "reward/model"), "--model.reward", f"model:{tmp_path / 'reward/model'}")  # fmt: skip
    assert main(made) == 0, capsys.readouterr().err
    asked = ["eval", str(tmp_path / "again/model"), str(files / "prompts.jsonl"), "--reward", REWARD, "--against",
             str(base), "--max_new_tokens", "6"]  # fmt: skip
    capsys.readouterr()
    assert main(asked) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and "24 prompts" in out[0] and "a tie is half a win" in out[2]


def test_a_killed_run_goes_on(base, files, tmp_path, capsys, monkeypatch):
    """Killed inside a round; then the same command with --ckpt_path last ends as one that was not killed."""
    changes = ("--data.passes", "2", "--trainer.max_steps", "12", "--run.checkpoint_every", "1")
    jobs = str(find_root() / "tests/llm_align")
    monkeypatch.syspath_prepend(jobs)
    command = [sys.executable, "-m", "llm_align", *options("grpo", base, files, tmp_path / "run", *changes)]
    last = tmp_path / "run/checkpoints/last.ckpt"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env={**os.environ, "PYTHONPATH": jobs}) as process:  # fmt: skip
        while not last.is_file() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert read_checkpoint(last)["global_step"] < 12
    for name, more in (("run", ("--ckpt_path", "last")), ("whole", ())):
        assert main(options("grpo", base, files, tmp_path / name, *changes, *more)) == 0, capsys.readouterr().err
    one, other = (read_checkpoint(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("run", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(values, other[name]) for name, values in one.items())


def test_two_devices(base, files, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(find_root() / "tests/llm_align"))
    monkeypatch.syspath_prepend(str(find_root() / "tests/llm_align"))
    for name, more in (("one", ()), ("two", ("--devices", "2", "--data.batch_size", "16"))):
        size = () if more else ("--data.batch_size", "32")
        assert main(options("grpo", base, files, tmp_path / name, *size, *more)) == 0, capfd.readouterr().err
    one, two = (load_model(tmp_path / name / "model")[0].state_dict() for name in ("one", "two"))
    far = sum(int(((values - two[name]).abs() > 1e-4).sum()) for name, values in one.items())
    assert far < 0.005 * sum(values.numel() for values in one.values())  # Adam, where a gradient is rounding alone


def test_files_of_a_task(tmp_path, capsys):
    assert main(["data", "arithmetic", str(tmp_path / "d"), "--number", "6", "--noise", "0.5"]) == 0
    assert len(capsys.readouterr().out.split()) == 4
    for name in ("sft", "prompts", "pairs", "held_out"):
        assert len((tmp_path / f"d/{name}.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("command", FITS)
def test_every_key_of_a_configuration_is_there_with_its_comment(command, capsys):
    text = (MODULE / f"{command}.yaml").read_text()
    with pytest.raises(SystemExit, match="0"):
        main([command, "--print_config"])
    whole, ours = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(text)
    assert keys(ours) <= keys(whole)
    for part in ("run", "data", "model"):
        assert keys(ours[part]) == keys(whole[part]), part
    for line in text.splitlines():
        parts = line.split("#")
        assert not parts[0].rstrip().endswith(":") or len(parts) > 1 or parts[0].strip() in (
            "run:", "data:", "model:", "fine_tune:", "lora:", "policy:", "value:", "preference:"
        ), line  # fmt: skip
    assert all("#" in line for line in text.splitlines() if line.strip() and not line.rstrip().endswith(":")
               and "clip_high" not in line)  # fmt: skip


def keys(tree, at=""):
    if not isinstance(tree, dict):
        return {at}
    return {path for name, each in tree.items() for path in keys(each, f"{at}.{name}")}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train"], "no command 'train'; choose sft, reward, dpo, ppo, grpo, data or eval"),
        (["data", "poetry", "x"], "there is no task 'poetry'; the tasks are"),
        (["eval"], "see `align eval --help`"),
        (["eval", "nowhere-at-all", "x.jsonl", "--reward", "arithmetic"], "no such checkpoint, nor a folder"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(command, words, capsys):
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("align: ") and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        ("dpo", ["--model.preference.beta", "0"], "beta=0.0 must be above 0"),
        ("dpo", ["--model.preference.kind", "kto"], "kind='kto' is none of sigmoid, hinge, ipo, robust"),
        ("dpo", ["--data.train", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        ("dpo", ["--run.compile", "true"], "run.compile has no effect here"),
        ("dpo", ["--model.loss_chunk", "8"], "model.loss_chunk has no effect here"),
        ("dpo", ["--model.fine_tune.lora.init_lora_weights", "pissa"], "take kaiming"),
        ("dpo", ["--data.context", "300"], "the model has 128 positions; lower context"),
        ("reward", ["--model.center", "-1"], "center=-1.0 must be 0 or more"),
        ("grpo", ["--model.reward", "poems"], "no reward 'poems'; give a task"),
        ("grpo", ["--model.policy.group", "1"], "answers are compared with each other; take at least 2"),
        ("grpo", ["--model.policy.temperature", "0"], "temperature=0.0 must be above 0"),
        ("grpo", ["--data.batch_size", "5"], "choose numbers that divide each other"),
        ("grpo", ["--trainer.accumulate_grad_batches", "3"], "a step would mix two rounds"),
        ("grpo", ["--data.context", "12"], "leaves no room behind it"),
        ("ppo", ["--model.policy.normaliser", "answer"], 'take normaliser="tokens"'),
        ("ppo", ["--model.reward", "model:nowhere"], "nowhere: no such folder; give that of a reward model"),
        ("ppo", ["--model.value.lam", "2"], "lam=2.0 must be from 0 to 1"),
        ("ppo", ["--model.policy.measure_kl", "false"], "kl_coef is the price of a distance"),
    ],
)  # fmt: skip
def test_mistakes_of_a_run_are_one_line(command, changes, words, base, files, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(find_root() / "tests/llm_align"))
    assert main(options(command, base, files, tmp_path / "run", *changes)) == 1
    err = capsys.readouterr().err
    assert err.startswith("align: ") and words in err and err.count("\n") == 1


def test_a_step_that_is_kept_nowhere(base, files, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(find_root() / "tests/llm_align"))
    assert main(options("grpo", base, files, tmp_path / "run", "--trainer.fast_dev_run", "true")) == 0
    assert "nothing is kept" in capsys.readouterr().out and not (tmp_path / "run/model").exists()
    assert set(KINDS) == set(FITS)
