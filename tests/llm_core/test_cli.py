"""`babygpt` as a reader runs it: every command, every promised error, and runs that are killed."""

import errno
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from forked import babygpt
from llm_core.cli import main
from llm_core.model import GPT
from llm_core.run.place import alone_in
from llm_core.store.atomic import AtomicCheckpoints
from loss_callbacks import own_text
from safetensors import SafetensorError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

MODULE = Path(__file__).parents[2] / "Module-3"
CONFIG = MODULE / "babygpt.yaml"
STEPS = 30


@pytest.fixture(scope="module")
def options(cache):
    """A run of seconds, with dropout, and with epochs that hold no whole number of steps; every other checkpoint falls
    on the step of a validation. All workers have the same one."""
    folder = cache.parent / "run-of-seconds"
    with FileLock(cache.parent / "run-of-seconds.lock"):
        if not folder.exists():
            folder.mkdir()
            write_options(folder)
    return folder / "config.yaml"


def write_options(folder):
    values = {
        "data": {"corpus": f"text:{own_text(folder)}", "tokenizer": "bpe-300", "context": 32, "batch_size": 4,
                 "val_percent": 10, "test_percent": 10},
        "model": {"config": {"hidden_size": 32, "num_hidden_layers": 2, "attention_dropout": 0.2,
                             "max_position_embeddings": 32}, "warmup_steps": 5},
        "trainer": {"max_steps": STEPS, "val_check_interval": 6, "accelerator": "cpu", "log_every_n_steps": 1,
                    "accumulate_grad_batches": 2},
        "run": {"checkpoint_every": 3},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(values))


def losses(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def fit(folder, options, *arguments):
    watch = json.dumps({"class_path": "loss_callbacks.Losses", "init_args": {"path": str(folder / "losses")}})
    return babygpt(
        folder, "fit", "--config", options, "--run.folder", folder / "run", "--trainer.callbacks+", watch, *arguments
    )


@pytest.fixture(scope="module")
def finished(options):
    """The folder of a run that was never interrupted; made by the first worker that asks."""
    folder = options.parent / "finished"
    with FileLock(options.parent / "finished.lock"):
        if not folder.exists():
            folder.mkdir()
            done = fit(folder, options)
            assert done.returncode == 0, done.stderr
            assert f"{STEPS} steps, train_loss " in done.stdout and done.stderr == ""
    return folder


HOOKS = ["batch_start", "before_optimizer_step", "batch_end", "validation", "save"]


def test_killed_at_random_steps_it_is_the_same_run(options, finished, tmp_path):
    """SIGKILL in the middle of a step, after it, in a validation, while saving; then `--ckpt_path last`."""
    draw = random.Random(4)
    kills = [(draw.randint(1, 17), draw.choice(HOOKS[:3]))]
    kills += [(18, "validation"), (21, "save"), (STEPS, "validation")]
    for step, hook in sorted(kills):
        killer = json.dumps({"class_path": "loss_callbacks.Killer", "init_args": {"step": step, "hook": hook}})
        done = fit(tmp_path, options, "--trainer.callbacks+", killer, "--ckpt_path", "last")
        assert done.returncode == -signal.SIGKILL, (step, hook, done.stderr)
    done = fit(tmp_path, options, "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    expected = {each["step"]: each["loss"] for each in losses(finished / "losses")}
    assert list(expected) == list(range(1, STEPS + 1))
    found = losses(tmp_path / "losses")
    assert {each["step"] for each in found} == set(expected)
    # Steps between a checkpoint and a kill were taken twice: the same both times.
    assert all(each["loss"] == expected[each["step"]] for each in found)
    assert len(found) > STEPS
    ours, theirs = (
        torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True) for folder in (tmp_path, finished)
    )
    assert ours["global_step"] == theirs["global_step"] == STEPS
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "LLMDataModule"):
        assert exact(ours[key]) == exact(theirs[key]), key
    best = [load_best(folder) for folder in (tmp_path, finished)]
    assert best[0] == best[1]


def exact(tree):
    """Tensors as their bytes, in whatever they lie in."""
    if isinstance(tree, dict):
        return {key: exact(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [exact(value) for value in tree]
    return tree.numpy().tobytes() if isinstance(tree, torch.Tensor) else tree


def load_best(folder):
    saved = torch.load(folder / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    return saved["global_step"], [values.sum().item() for values in saved["state_dict"].values()]


def test_without_the_random_states_dropout_would_differ(options, finished, tmp_path):
    """What `RandomState` is for: with the states taken out of the checkpoint, the next losses are others."""
    killer = json.dumps({"class_path": "loss_callbacks.Killer", "init_args": {"step": 9, "hook": "batch_end"}})
    assert fit(tmp_path, options, "--trainer.callbacks+", killer).returncode == -signal.SIGKILL
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    del saved["random_state"]
    torch.save(saved, path)
    assert fit(tmp_path, options, "--ckpt_path", "last").returncode == 0
    expected = {each["step"]: each["loss"] for each in losses(finished / "losses")}
    resumed = losses(tmp_path / "losses")[9:]
    assert [each["step"] for each in resumed] == list(range(7, STEPS + 1))  # the last checkpoint before was of step 6
    assert all(each["loss"] != expected[each["step"]] for each in resumed)


def test_a_checkpoint_cut_short_is_never_in_place(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"step": torch.tensor(1)}, path)
    with pytest.raises(Exception, match=r"pickle|local"):
        AtomicCheckpoints().save_checkpoint({"step": torch.tensor(2), "cut": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"step": torch.tensor(1)}


def test_what_a_run_leaves(finished):
    folder = finished / "run"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    events = EventAccumulator(str(folder)).Reload()
    measures = {f"{split}_{name}" for split in ("train", "val") for name in ("loss", "perplexity", "bits_per_byte")}
    assert measures | {"learning_rate", "grad_norm", "tokens_per_second"} <= set(events.Tags()["scalars"])
    found = [float(each.value) for each in events.Scalars("train_loss")]  # in single precision
    expected = [float.fromhex(each["loss"]) for each in losses(finished / "losses")]
    assert found == torch.tensor(expected, dtype=torch.float32).tolist()
    assert [each.step + 1 for each in events.Scalars("val_loss")] == [6, 12, 18, 24, 30]  # steps, not batches
    rates = [each.value for each in events.Scalars("learning_rate")]
    assert [rates[0], max(rates), rates[-1]] == pytest.approx([1e-3 / 5, 1e-3, 1e-4])
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["config"]["hidden_size"] == 32


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Commands run in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys, *arguments):
    assert main([str(each) for each in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_validate_and_test(finished, here, capsys):
    config = finished / "run" / "config.yaml"
    of_the_fit = config.read_text()
    best = torch.load(finished / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    state = best["callbacks"]["RunCheckpoints"]
    out = printed(capsys, "validate", "--config", config, "--ckpt_path", "best")
    found = float(re.search(r"val_loss\W+([\d.]+)", out)[1])
    assert found == pytest.approx(state["best_val_loss"], abs=1e-5)
    assert "val_bits_per_byte" in out
    other = ["--config", config, "--ckpt_path", "last", "--data.batch_size", "3"]
    assert "test_perplexity" in printed(capsys, "test", *other)
    assert config.read_text() == of_the_fit


def test_a_run_that_is_at_its_end_takes_no_step(finished, here, capsys):
    shutil.copytree(finished / "run", "run")
    config = yaml.safe_load((finished / "run" / "config.yaml").read_text())
    config["trainer"]["callbacks"] = None
    config["run"]["folder"] = str(here / "run")
    Path("config.yaml").write_text(yaml.safe_dump(config))
    before = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    out = printed(capsys, "fit", "--config", "config.yaml", "--ckpt_path", "last")
    assert f"{STEPS} steps, " in out and "nan" not in out
    after = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_model_is_compiled_when_it_is_asked_for(options, here, monkeypatch, capsys, wanted):
    compiled = []
    monkeypatch.setattr(GPT, "compile", lambda model: compiled.append(model))
    few = ["--trainer.max_steps", 1, "--model.warmup_steps", 0, "--trainer.limit_val_batches", 0]
    printed(capsys, "fit", "--config", options, "--run.folder", "run", *few, "--run.compile", wanted)
    assert len(compiled) == wanted


def test_export_and_sample(finished, here, capsys):
    assert "wrote" in printed(capsys, "export", finished / "run", "folder")
    prompts = ["alpha", "beta gamma"]
    how = ["--max_new_tokens", 12, "--temperature", 0, "--prompt", *prompts]
    texts = printed(capsys, "sample", "folder", *how)
    assert texts == printed(capsys, "sample", finished / "run", *how)
    tokenizer = AutoTokenizer.from_pretrained("folder")
    theirs = AutoModelForCausalLM.from_pretrained("folder")
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        text = tokenizer.decode(theirs.generate(ids, max_new_tokens=12, do_sample=False)[0], skip_special_tokens=True)
        assert text.startswith(prompt) and text in texts
    last = finished / "run" / "checkpoints" / "last.ckpt"
    draw = ["sample", last, "--prompt", "alpha", "--num_samples", 3, "--max_new_tokens", 5, "--seed"]
    drawn = printed(capsys, *draw, 1)
    assert drawn != printed(capsys, *draw, 2)
    assert len(drawn.split("\n\n")) >= 4


def test_an_exported_folder_is_trained_on(finished, options, here, capsys):
    printed(capsys, "export", finished / "run", "folder")
    values = yaml.safe_load(options.read_text())
    del values["model"]["config"], values["data"]["tokenizer"]
    values["model"] |= {"pretrained": "folder", "warmup_steps": 1}
    values["trainer"] |= {"max_steps": 3, "val_check_interval": 1}
    Path("on.yaml").write_text(yaml.safe_dump(values))
    printed(capsys, "fit", "--config", "on.yaml", "--run.folder", "on")
    events = EventAccumulator("on").Reload()
    before = EventAccumulator(str(finished / "run")).Reload().Scalars("val_loss")
    assert events.Scalars("val_loss")[0].value < before[0].value  # it goes on where the first run ended
    with pytest.raises(AssertionError, match=r"model\.config\.hidden_size has no effect beside model\.pretrained"):
        printed(capsys, "fit", "--config", "on.yaml", "--run.folder", "no", "--model.config.hidden_size", 64)
    values["data"]["tokenizer"] = "char"
    Path("char.yaml").write_text(yaml.safe_dump(values))
    for given in (["char.yaml"], ["on.yaml", "--data.tokenizer", "bpe-400"]):
        with pytest.raises(AssertionError, match=r"makes ids that mean nothing to model\.pretrained, which brings its"):
            printed(capsys, "fit", "--run.folder", "no", "--config", *given)


# A part of a checkpoint by its name, what is in its place, and what is said beside the file's name.
INSIDE = {
    "no loops": ("loops", 3, "damaged inside"),
    "loops of another kind": ("loops", {"fit_loop": []}, "damaged inside"),
    "callbacks": ("callbacks", {"RunCheckpoints": 3}, "damaged inside"),
    "no states": ("optimizer_states", [{}], "damaged inside"),
    "states of another optimiser": ("optimizer_states", [{"state": {0: {"step": 1}}}], "does not fit"),
    "random states": ("random_state", [{"python": 3}], "damaged inside (TypeError"),
    "a random generator": ("random_state", [{"python": [3, [1], None]}], "state vector"),
    "a place in the text": ("LLMDataModule", {"train": {"epoch": "x"}}, "invalid literal"),
}


@pytest.mark.parametrize(("part", "value", "said"), INSIDE.values(), ids=INSIDE)
def test_a_checkpoint_that_is_damaged_inside_is_named(part, value, said, finished, options, here, capsys):
    saved = torch.load(finished / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({**saved, part: value}, "odd.ckpt")
    go_on = ["--ckpt_path", "odd.ckpt", "--run.folder", "on", "--trainer.max_steps", STEPS + 2]
    assert main(list(map(str, ["fit", "--config", options, *go_on]))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("babygpt: odd.ckpt") and said in line and len(line) < 400


def test_the_readmes_commands(options, here, capsys):
    """As they stand, with a smaller run in the place of the file's."""
    text = (MODULE / "README.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True)[2:] for line in text.splitlines() if line.startswith("uv run ")]
    ours = [command[1:] for command in commands if command[0] == "babygpt"]
    assert [command[0] for command in ours] == ["fit", "fit", "validate", "test", "sample", "export"]
    small = ["--config", str(options), "--trainer.max_steps", "8", "--run.folder", "runs/babygpt"]
    for command in ours:
        arguments = [str(CONFIG) if each == "Module-3/babygpt.yaml" else each for each in command]
        if "--config" in arguments:
            place = arguments.index("--config") + 2
            arguments[place:place] = small
        assert main(arguments) == 0, (command, capsys.readouterr().err)
    assert "def add(" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained("exported").config.vocab_size < 1024
    (script,) = {command[1] for command in commands if command[0] == "python"}
    done = subprocess.run([sys.executable, MODULE.parent / script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--ladder" in done.stdout


def test_print_config_is_a_configuration(here, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(CONFIG), "--print_config"])
    assert stopped.value.code == 0
    whole = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(CONFIG.read_text())
    for part in ("model", "data", "run"):  # the file that readers start from names every key
        assert set(given[part]) == set(whole[part]), part
    assert set(given["model"]["config"]) == set(whole["model"]["config"])
    assert set(given["trainer"]) <= set(whole["trainer"])


def test_every_key_of_the_configuration_is_explained():
    for line in CONFIG.read_text().splitlines():
        opens = re.fullmatch(r"(run|data|model|  config):", line)
        assert opens or line.startswith("#") or re.search(r"\S +# \S", line), line


def test_help(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for command in ("fit", "validate", "test", "sample", "export"):
        assert f"babygpt {command}" in told
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
    assert "top_p" in printed_help(capsys, "sample") and "num_key_value_heads" in printed_help(capsys, "fit")


def printed_help(capsys, command):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


MINE = ["--config", "OPTIONS"]
SHIFTED = ["--data.corpus", "text:shifted.txt"]
BIG = ["--data.context", "9000", "--model.config.max_position_embeddings", "9000"]
ERRORS = {
    "no such command": (["fti"], "no command 'fti'; choose fit"),
    "unknown option": (["fit", "--model.config.hiden_size", "3"], "did you mean model.config.hidden_size?"),
    "unknown key": (["fit", "--config", "UNKNOWN"], "'data.contxt'; did you mean data.context?"),
    "broken yaml": (["fit", "--config", "BROKEN"], "Problems parsing config"),
    "no such file": (["fit", "--config", "nowhere.yaml"], "File does not exist"),
    "wrong type": (["fit", "--trainer.max_steps", "many"], '"trainer.max_steps": Expected a <class \'int\'>'),
    "odd width": (["fit", *MINE, "--model.config.hidden_size", "65"], "hidden_size=65 does not give 4 heads"),
    "no corpus": (["fit", "--data.corpus", "text:nowhere"], "no such file or folder"),
    "unreadable corpus": (["fit", "--data.corpus", "text:latin.txt"], "is not UTF-8"),
    "unknown corpus": (["fit", "--data.corpus", "pythn"], "corpus 'pythn' is unknown; choose one of"),
    "context longer than the model": (["fit", *MINE, "--data.context", "64"], "context=64 and the model"),
    "context longer than the data": (["fit", *MINE, *BIG], "context=9000 and text:"),
    "vocabulary too small": (
        ["fit", *MINE, "--model.config.vocab_size", "70"], "and the model a vocab_size of 70; raise"
    ),
    "checkpoint of another shape": (
        ["fit", *MINE, "--ckpt_path", "LAST", "--model.config.hidden_size", "64"],
        "hidden_size=32 (here 64)",
    ),
    "no such checkpoint": (["fit", "--ckpt_path", "no.ckpt"], "ckpt_path no.ckpt: no such file; give last, best"),
    "nothing to validate": (["validate", *MINE], "which weights? add --ckpt_path"),
    "no best yet": (["test", *MINE, "--ckpt_path", "best"], "best.ckpt is not there; train first"),
    "over a run": (["fit", *MINE, "--run.folder", "RUN"], "holds a run; add --ckpt_path last to go on"),
    "warm-up too long": (["fit", *MINE, "--model.warmup_steps", "30"], "leaves nothing of a run of 30"),
    "checkpoints": (["fit", *MINE, "--run.checkpoint_every", "0"], "checkpoint_every=0 must be at least"),
    "compiled in vain": (
        ["fit", *MINE, "--run.compile", "true", "--model.loss_chunk", "8"], "no effect beside model.loss_chunk"
    ),
    "two models": (["fit", *MINE, "--model.pretrained", "nowhere"], "has no effect beside model.pretr"),
    "no model": (["fit", "--model.pretrained", "./nowhere"], "./nowhere"),
    "no model to sample": (["sample", "nowhere", "--prompt", "x"], "nowhere: no such folder or checkpoint"),
    "an empty folder": (["sample", ".", "--prompt", "x"], "has no config.json; give a run of babygpt"),
    "temperature": (["sample", "RUN", "--prompt", "x", "--temperature", "-1"], "temperature=-1.0 must be 0 or more"),
    "num_samples": (["sample", "RUN", "--prompt", "x", "--num_samples", "0"], "num_samples=0 must be from 1 to 10000"),
    "a prompt that is too long": (["sample", "RUN", "--prompt", "alpha " * 60], "leaves no room in 32 positions"),
    "export over a folder": (["export", "RUN", "."], "exists; give a new folder"),
    "nothing to sample": (["sample"], "arguments are required: "),
    "an empty prompt": (["sample", "RUN", "--prompt", ""], "a prompt is empty"),
    "an empty configuration": (["fit", "--config", "empty.yaml"], "empty.yaml holds NoneType and no keys"),
    "a key twice": (["fit", "--config", "twice.yaml"], "context stands in line 2 and in line 3; keep one"),
    "a part without keys": (["fit", "--config=number.yaml"], "data=3 must hold keys"),
    "climbing": (["fit", *MINE, "--trainer.gradient_clip_val", "-1"], "gradient_clip_val=-1 must be 0 or more"),
    "no batches a step": (["fit", *MINE, "--trainer.accumulate_grad_batches", "0"], "batches=0 must be at least 1"),
    "never a point": (["fit", *MINE, "--trainer.log_every_n_steps", "0"], "log_every_n_steps=0 must be at least 1"),
    "validated after 0": (["fit", *MINE, "--trainer.val_check_interval", "0"], "val_check_interval=0 must be above 0"),
    "no training": (["fit", *MINE, "--trainer.limit_train_batches", "0"], "limit_train_batches=0: an epoch goes on"),
    "weights below 0": (["fit", *MINE, "--model.config.initializer_range", "-1"], "range=-1.0 must be 0 or more"),
    "no rotation": (["fit", *MINE, "--model.config.rope_theta", "0"], "rope_theta=0.0 must be above 0"),
    "Lightning's own": (["fit", *MINE, "--trainer.gradient_clip_algorithm", "no"], "Allowed algorithms"),
    "devices": (["fit", *MINE, "--trainer.devices", "x"], "should be an int"),
    "nothing to test on": (["test", *MINE, "--data.test_percent", "0"], "data.test_percent=0 leaves nothing to test"),
    "an empty checkpoint": (["fit", *MINE, "--ckpt_path", "empty.yaml"], "empty.yaml is no checkpoint of babygpt ("),
    "text for a checkpoint": (["test", *MINE, "--ckpt_path", "twice.yaml"], "twice.yaml is no checkpoint of babygpt"),
    "half a checkpoint": (["validate", *MINE, "--ckpt_path", "half.ckpt"], "half.ckpt is no checkpoint of babygpt"),
    "another's checkpoint": (["fit", *MINE, "--ckpt_path", "plain.ckpt"], "does not say what model it is of"),
    "another tokenizer": (["validate", "--ckpt_path", "LAST", *MINE, *SHIFTED], "was trained with another tokenizer"),
    "another rate": (
        ["fit", *MINE, "--ckpt_path", "LAST", "--model.learning_rate", "0.5"],
        "model.learning_rate=0.5 has no effect on a run that goes on with 0.001",
    ),
    "another decay": (["fit", *MINE, "--ckpt_path", "LAST", "--model.weight_decay", "0"], "model.weight_decay=0"),
    "a config.yaml of one's own": (["fit", *MINE, "--run.folder", "own"], "config.yaml is not of a run"),
    "only a best": (["fit", *MINE, "--run.folder", "best"], "holds a run; add --ckpt_path best to go on"),
    "a temperature that overflows": (["sample", "RUN", "--prompt", "x", "--temperature", "1e-40"], "0, or at least 1e"),
    "a penalty that overflows": (["sample", "RUN", "--prompt", "x", "--repetition_penalty", "1e-40"], "at least 1e-6"),
    "a rate of infinity": (["fit", *MINE, "--model.learning_rate", ".inf"], "model.learning_rate=inf must be a finite"),
    "a folder for files of its own": (["fit", *MINE, "--trainer.default_root_dir", "x"], "no effect; set run.folder"),
    "a default beside a pretrained model": (
        ["fit", "--model.pretrained", "nowhere", "--model.config.num_hidden_layers", "4"], "layers has no effect beside"
    ),
    "a model beyond memory": (
        ["fit", *MINE, "--model.config.hidden_size", "1000000000", "--model.config.intermediate_size", "32"],
        "; make model.config smaller",
    ),
    "another's run": (["fit", *MINE, "--run.folder", "best", "--ckpt_path", "LAST"], "holds a run, which one that"),
    "over a run, by a copy": (["fit", *MINE, "--run.folder", "RUN", "--ckpt_path", "copy.ckpt"], "would write over"),
    "a damaged checkpoint": (["validate", *MINE, "--ckpt_path", "flipped.ckpt"], "flipped.ckpt is damaged ("),
    "a damaged checkpoint to sample": (["sample", "flipped.ckpt", "--prompt", "x"], "flipped.ckpt is damaged ("),
    "weights that are no numbers": (["sample", "nan.ckpt", "--prompt", "alpha"], "of the model is not finite"),
    "weights that are no numbers to export": (["export", "nan.ckpt", "out"], "of the model is not finite"),
    "a character nobody knows": (["sample", "RUN", "--prompt", "a\udcff"], "lone surrogate U+DCFF"),
    "too many texts": (["sample", "RUN", "--prompt", "x", "--num_samples", "1000000000"], "must be from 1 to 10000"),
    "no end to the heat": (["sample", "RUN", "--prompt", "x", "--temperature", ".inf"], "temperature=inf must be 0 or"),
    "an accelerator that is not here": (["fit", *MINE, "--trainer.accelerator", "tpu"], "torch_xla"),
    "a precision that is not here": (["fit", *MINE, "--trainer.precision", "transformer-engine"], "ransformer"),
    "a number in another system": (["sample", "RUN", "--prompt", "x", "--seed", "0x10"], "seed=0x10 is no plain dec"),
    "the first rows again": (["fit", *MINE, "--ckpt_path", "LAST", "--trainer.overfit_batches", "2"], "overfit_batch"),
    "a folder in the place of a checkpoint": (["fit", *MINE, "--ckpt_path", "own"], "own is a folder, and no checkpo"),
    "a large seed": (["sample", "RUN", "--prompt", "x", "--seed", "9" * 30], "from -2^63 to 2^64"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line(arguments, message, options, finished, here, capsys):
    (here / "latin.txt").write_bytes("é".encode("latin-1"))
    (here / "unknown.yaml").write_text("data:\n  contxt: 3\n")
    (here / "broken.yaml").write_text("data: [3\n")
    (here / "empty.yaml").touch()
    (here / "twice.yaml").write_text("data:\n  context: 8\n  context: 16\n")
    (here / "number.yaml").write_text("data: 3\n")
    run_folder = finished / "run"
    last = (run_folder / "checkpoints" / "last.ckpt").read_bytes()
    (here / "half.ckpt").write_bytes(last[: len(last) // 2])
    (here / "copy.ckpt").write_bytes(last)
    middle = len(last) // 2  # in the weights, or their averages: numbers all of them
    (here / "flipped.ckpt").write_bytes(last[:middle] + bytes([last[middle] ^ 0x20]) + last[middle + 1 :])
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, here / "plain.ckpt")
    if "nan.ckpt" in arguments:
        broken = torch.load(here / "copy.ckpt", weights_only=True)
        broken["state_dict"] = {name: values * float("nan") for name, values in broken["state_dict"].items()}
        torch.save(broken, here / "nan.ckpt")
    text = Path(yaml.safe_load(options.read_text())["data"]["corpus"].removeprefix("text:")).read_text()
    (here / "shifted.txt").write_text(text.translate(str.maketrans("abcdefgh", "bcdefgha")))  # as many tokens, others
    (here / "own").mkdir()
    (here / "own" / "config.yaml").write_text("mine: 1\n")
    (here / "best" / "checkpoints").mkdir(parents=True)
    (here / "best" / "checkpoints" / "best.ckpt").write_bytes(last)
    places = {"UNKNOWN": "unknown.yaml", "BROKEN": "broken.yaml", "OPTIONS": options, "RUN": run_folder,
              "LAST": run_folder / "checkpoints" / "last.ckpt"}  # fmt: skip
    before = sorted(path.stat().st_mtime_ns for path in run_folder.rglob("*"))
    assert main([str(places.get(each, each)) for each in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("babygpt: ") and message in line and len(line) < 400
    assert sorted(path.stat().st_mtime_ns for path in run_folder.rglob("*")) == before  # nothing is lost


def test_two_runs_do_not_share_a_folder(options, here, capsys):
    arguments = ["fit", "--config", str(options), "--run.folder", "new", "--trainer.max_steps", "6"]
    with alone_in(here / "new"):
        assert main(arguments) == 1
    assert "new is in use by another run" in capsys.readouterr().err
    assert [path.name for path in (here / "new").iterdir()] in (["lock"], [])
    assert main(arguments) == 0


def test_the_folder_is_kept_before_it_is_looked_at(options, here, monkeypatch):
    """Of two starts at once, one would else find no run there, and write over what the other has begun."""
    seen = []

    def look(wanted, folder, fits):
        with pytest.raises(ValueError, match="in use by another run"), alone_in(folder):
            pass
        seen.append(folder)
        raise ValueError("looked")

    monkeypatch.setattr("llm_core.run.training_cli.find_checkpoint", look)
    assert main(["fit", "--config", str(options), "--run.folder", "new"]) == 1
    assert seen == [Path("new")]


def test_ctrl_c_says_how_to_go_on(options, tmp_path):
    stopper = json.dumps(
        {"class_path": "loss_callbacks.Killer", "init_args": {"step": 6, "hook": "batch_end", "number": signal.SIGINT}}
    )
    done = fit(tmp_path, options, "--trainer.callbacks+", stopper)
    assert (done.returncode, len(done.stderr.splitlines())) == (130, 1), done.stderr
    assert "stopped; --ckpt_path last goes on" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_a_terminated_run_says_how_to_go_on(options, tmp_path):
    stopper = json.dumps(
        {"class_path": "loss_callbacks.Killer", "init_args": {"step": 7, "hook": "batch_end", "number": signal.SIGTERM}}
    )
    done = fit(tmp_path, options, "--trainer.callbacks+", stopper)
    assert (done.returncode, len(done.stderr.splitlines())) == (143, 1), done.stderr
    assert "terminated; --ckpt_path last goes on" in done.stderr
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_where_slurm_is_installed_a_run_is_as_quiet(options, here, monkeypatch, capsys):
    (here / "srun").write_text("#!/bin/sh\n")
    (here / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=os.pathsep)
    assert main(["fit", "--config", str(options), "--trainer.max_steps", "6", "--run.folder", "new"]) == 0
    assert capsys.readouterr().err == ""


def test_a_validation_writes_nothing(finished, here, capsys):
    """So a run in a folder that takes no files can be looked at."""
    shutil.copytree(finished / "run", "run")
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    printed(capsys, "validate", "--config", "run/config.yaml", "--run.folder", "run", "--ckpt_path", "best")
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before


def test_a_model_is_not_judged_on_what_it_was_trained_on(finished, options, here, capsys):
    """A larger share takes documents for validation that were trained on; a smaller one takes none."""
    printed(capsys, "export", finished / "run", "words")
    own = ["--config", options, "--data.tokenizer", "words", "--run.folder", "run", "--ckpt_path", "last"]
    printed(capsys, "fit", *own, "--trainer.max_steps", 1, "--model.warmup_steps", 0)
    for command, share in (("validate", "val_percent"), ("validate", "test_percent"), ("test", "test_percent")):
        assert main([command, *map(str, own), f"--data.{share}", "45"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "trained on" in line and share in line
    printed(capsys, "validate", *own, "--data.test_percent", 5)
    printed(capsys, "test", *own, "--data.val_percent", 5)


def test_a_part_of_the_configuration_in_a_file_of_its_own(options, here, capsys):
    Path("data.yaml").write_text("context: 16\n")
    few = ["--trainer.max_steps", 1, "--model.warmup_steps", 0, "--trainer.limit_val_batches", 0]
    printed(capsys, "fit", "--config", options, "--data", "data.yaml", "--run.folder", "run", *few)
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"] is not None


def test_a_run_in_a_folder_that_was_moved_keeps_its_best(finished, options, here, capsys):
    shutil.copytree(finished / "run", "moved")
    last, best = Path("moved/checkpoints/last.ckpt"), Path("moved/checkpoints/best.ckpt")
    saved, kept = torch.load(last, weights_only=True), best.read_bytes()
    saved["callbacks"]["RunCheckpoints"]["best_val_loss"] = 0.01  # no validation to come is as good
    torch.save(saved, last)
    printed(capsys, "fit", "--config", options, "--run.folder", "moved", "--ckpt_path", "last",
            "--trainer.max_steps", STEPS + 6)  # fmt: skip
    assert torch.load(last, weights_only=True)["global_step"] == STEPS + 6
    assert best.read_bytes() == kept


def test_an_interrupted_export_can_be_run_again(finished, here, monkeypatch, capsys):
    def stopped(model, tokenizer, folder):
        folder.mkdir()
        (folder / "config.json").touch()
        monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as after a SIGKILL
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llm_core.cli.save_model", stopped)
        assert main(["export", str(finished / "run"), "folder"]) == 130
    assert not Path("folder").exists()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert "wrote folder" in printed(capsys, "export", finished / "run", "folder")
    assert AutoModelForCausalLM.from_pretrained("folder").config.model_type == "llama"


def test_a_text_goes_out_through_any_terminal(finished, here, monkeypatch):
    """What the terminal's encoding cannot show is a mark."""
    monkeypatch.setattr("llm_core.cli.sample_texts", lambda *_: ["a – ü"])
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["sample", str(finished / "run"), "--prompt", "alpha"]) == 0
    out.flush()
    assert out.buffer.getvalue() == b"a ? ?\n\n"


@pytest.mark.parametrize(("place", "code", "lines"), [("pipe", 141, 0), ("/dev/full", 1, 1)])
def test_nobody_reads_what_is_printed(place, code, lines, tmp_path):
    """A closed pipe (`| head -1`) ends a command quietly, a full device with a line."""
    reader, writer = os.pipe()
    os.close(reader)
    out = writer if place == "pipe" else os.open(place, os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-m", "llm_core.cli", "--help"], stdout=out, stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (code, lines), done.stderr


def test_epochs_are_not_counted_on_with_steps_of_another_size(options, here, capsys):
    epochs = ["--trainer.max_steps", -1, "--trainer.max_epochs", 2, "--run.folder", "run"]
    printed(capsys, "fit", "--config", options, *epochs)
    arguments = ["fit", "--config", str(options), *map(str, epochs), "--ckpt_path", "last", "--trainer.max_epochs", "4"]
    assert main([*arguments, "--data.batch_size", "2"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a step had 8 rows in 2 batches and would have 4 in 2; that can change at a batch a step" in line
    assert main([*arguments, "--data.batch_size", "2", "--trainer.accumulate_grad_batches", "4"]) == 1
    assert "would have 8 in 4" in capsys.readouterr().err
    assert main(arguments) == 0


def test_ctrl_c_while_it_samples(monkeypatch, capsys):
    def interrupted(place):
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_core.cli.open_model", interrupted)
    assert main(["sample", "x", "--prompt", "y"]) == 130
    assert capsys.readouterr().err == "babygpt: stopped\n"


def test_on_a_full_disk_no_half_of_a_folder_is_left(finished, here, monkeypatch, capsys):
    def full(model, tokenizer, folder):
        folder.mkdir()
        (folder / "config.json").touch()
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("llm_core.cli.save_model", full)
    assert main(["export", str(finished / "run"), "folder"]) == 1
    assert capsys.readouterr().err == "babygpt: folder cannot be written (No space left on device)\n"
    assert list(here.iterdir()) == []


def test_on_a_full_disk_the_checkpoint_before_stays(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"step": 1}, path)

    def full(checkpoint, file):  # as torch does it
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 4 vs 2")  # noqa: B904

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match=r"last\.ckpt cannot be written \(No space left"):
        AtomicCheckpoints().save_checkpoint({"step": 2}, path)
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_traceback_for_who_wants_one(here):
    with pytest.raises(ValueError, match="no command"):
        main(["fti", "--traceback"])


def test_an_error_in_a_shell(tmp_path):
    done = babygpt(tmp_path, "fit", "--data.corpus", "pythn")
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_last_before_the_first_checkpoint_begins(options, here, capsys):
    assert main(["fit", "--config", str(options), "--run.folder", "new", "--ckpt_path", "last",
                 "--trainer.max_steps", "6"]) == 0  # fmt: skip
    assert "no checkpoint in new/checkpoints yet; beginning at step 0" in capsys.readouterr().err.replace(os.sep, "/")


def test_a_crash_of_our_own_is_one_line_and_not_hidden(here, monkeypatch, capsys):
    monkeypatch.setattr("llm_core.cli.open_model", lambda place: 1 / 0)
    assert main(["sample", "x", "--prompt", "y"]) == 1
    told = "babygpt: division by zero (ZeroDivisionError; COURSE_TRACEBACK=1 shows where)\n"
    assert capsys.readouterr().err == told
    monkeypatch.setenv("COURSE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["sample", "x", "--prompt", "y"])
