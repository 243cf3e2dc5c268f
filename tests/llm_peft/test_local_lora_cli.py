"""`local-lora` from a shell: train, stop and go on, talk, merge, plan; and each mistake in one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time

import pytest
import torch
from llm_peft.cli import main
from transformers import AutoModelForCausalLM, AutoTokenizer

from course.plan.curriculum import find_root

CONFIG = find_root() / "Module-6/local-lora.yaml"


@pytest.fixture
def options(base, examples, tmp_path) -> list[str]:
    return [
        "--config", str(CONFIG), "--data.train", str(examples), "--model.base", str(base), "--run.folder",
        str(tmp_path / "run"), "--data.context", "128", "--data.batch_size", "2", "--model.warmup_steps", "1",
        "--run.checkpoint_every", "2", "--trainer.val_check_interval", "5",
        "--trainer.accelerator", "cpu", "--model.learning_rate", "1e-2",
    ]  # fmt: skip


def test_train_talk_and_merge(options, base, tmp_path, capsys, monkeypatch):
    assert main(["fit", *options]) == 0
    folder = tmp_path / "run"
    said = capsys.readouterr()
    assert "the adapter of its best checkpoint" in said.out and said.err == ""
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}

    assert main(["merge", str(folder), str(tmp_path / "merged")]) == 0
    assert main(["merge", str(folder / "adapter"), str(tmp_path / "again")]) == 0
    ids = torch.arange(40).view(1, 40)
    merged, again, plain = (AutoModelForCausalLM.from_pretrained(tmp_path / name)(ids).logits for name in
                            ("merged", "again", base))  # fmt: skip
    torch.testing.assert_close(merged, again, rtol=0, atol=1e-5)
    assert (merged - plain).abs().max() > 0.01
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert main(["merge", str(folder), str(tmp_path / "merged")]) == 1
    assert "exists; give a new folder" in capsys.readouterr().err

    for place in (folder, folder / "adapter", tmp_path / "merged", base):
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is 3 plus one?\n\nAnd 4?\n"))
        assert main(["chat", str(place), "--max_new_tokens", "4"]) == 0
        assert "(a new conversation)" in capsys.readouterr().out

    assert main(["fit", *options]) == 1
    assert "holds a run; add --ckpt_path last to go on" in capsys.readouterr().err
    assert main(["fit", *options, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert main(["fit", *options, "--ckpt_path", "last", "--model.fine_tune.lora.r", "8"]) == 1
    assert "the run was made with lora=" in capsys.readouterr().err


def test_a_killed_run_goes_on(options, tmp_path, capsys):
    """Killed after some checkpoint; then the same command with --ckpt_path last ends as one that was not killed."""
    from llm_peft.command.run import read_trained

    arguments = ["fit", *options, "--trainer.max_epochs", "4"]
    command, quiet = [sys.executable, "-m", "llm_peft", *arguments], subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        while not (tmp_path / "run/checkpoints/last.ckpt").is_file() and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert main([*arguments, "--ckpt_path", "last"]) == 0, capsys.readouterr().err
    killed = read_trained(tmp_path / "run/checkpoints/last.ckpt").state
    whole = [str(tmp_path / "whole") if each == str(tmp_path / "run") else each for each in arguments]
    assert main(whole) == 0, capsys.readouterr().err
    expected = read_trained(tmp_path / "whole/checkpoints/last.ckpt").state
    assert all(torch.equal(values, killed[name]) for name, values in expected.items())


def test_plan(base, capsys):
    assert main(["plan", str(base), "--context", "32", "--memory", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("qlora") == 2 and "GB (10^9 bytes), of 1.0 there" in out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train"], "no command 'train'; choose fit, chat, merge or plan"),
        (["chat", "nowhere-at-all"], "no such checkpoint, nor a folder"),
        (["chat"], "see `local-lora chat --help`"),
        (["merge", "nowhere-at-all", "new"], "no run of local-lora and no adapter"),
        (["plan", "nowhere-at-all"], "no such folder, and none of the sizes 1M"),
        (["plan", "7B", "--memory", "0"], "--memory 0.0 must be above 0"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(command, words, capsys):
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("local-lora: ") and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--model.fine_tune.lora.r", "0"], "a rank is a whole number and at least 1"),
        (["--model.fine_tune.lora.target_modules", "[nothing]"], "no linear layer is called 'nothing'; there are"),
        (["--model.fine_tune.method", "tune"], "none of full, lora, qlora"),
        (["--data.train", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--model.base", "nowhere-at-all"], "no such checkpoint, nor a folder"),
        (["--data.context", "10"], "beyond context=10; raise context"),
        (["--data.context", "300"], "the model has 256 positions; lower context"),
        (["--model.fine_tune.rank", "3"], "rank"),
    ],
)  # fmt: skip
def test_mistakes_of_a_run_are_one_line(changes, words, options, capsys):
    assert main(["fit", *options, *changes]) == 1
    err = capsys.readouterr().err
    assert err.startswith("local-lora: ") and words in err and err.count("\n") == 1


def test_what_the_context_cuts_is_told(options, capsys, tmp_path):
    path = tmp_path / "long.jsonl"
    lines = [json.dumps({"prompt": "a", "completion": "plus one " * 200})] + [json.dumps({"text": "It is 2."})] * 30
    path.write_text("\n".join(lines))
    changed = ["--data.train", str(path), "--data.val", str(path), "--trainer.max_epochs", "1"]
    assert main(["fit", *options, *changed]) == 0
    assert "local-lora: 1 examples of train are longer than data.context=128; their last " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--accelerator", "cpu", "--trainer.accelerator", "gpu"], "trainer.accelerator=gpu beside --accelerator cpu"),
        (["--accelerator", "toaster"], "accelerator='toaster' is none of"),
        (["--devices", "0"], "devices=0 must be a whole number"),
    ],
)  # fmt: skip
def test_devices_that_cannot_be(changes, words, options, capsys):
    kept = [each for each in options if each not in ("--trainer.accelerator", "cpu")]
    assert main(["fit", *kept, *changes]) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_memory_that_will_not_suffice(options, capsys, monkeypatch):
    monkeypatch.setattr("llm_peft.command.fit.ram", lambda: 1_000_000)
    assert main(["fit", *options]) == 1
    err = capsys.readouterr().err
    assert "a step takes" in err and "lower data.batch_size" in err and err.count("\n") == 1


def test_help_starts_at_once():
    done = subprocess.run([sys.executable, "-m", "llm_peft"], capture_output=True, text=True)
    assert done.returncode == 2 and "local-lora fit" in done.stdout
