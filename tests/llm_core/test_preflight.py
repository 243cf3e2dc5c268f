"""What is refused before a run begins: values that mean another thing than was written, options without effect."""

from types import SimpleNamespace

import pytest
from jsonargparse import Namespace
from llm_core.config import GPTConfig
from llm_core.run.arguments import check_arguments
from llm_core.run.place import find_checkpoint
from llm_core.run.preflight import check_numbers, refuse_too_large


def config(**changes):
    """A configuration as the parser gives it."""
    values = {
        "run": {"folder": "run", "checkpoint_every": 1},
        "data": {"val_percent": 5.0, "test_percent": 5.0, "context": 8},
        "model": {"config": {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "initializer_range": 0.02}, "betas": [0.9, 0.95]},
        "trainer": {
            "gradient_clip_val": 1.0, "accumulate_grad_batches": 1, "log_every_n_steps": 1, "min_steps": None,
            "max_steps": 10, "min_epochs": None, "max_epochs": None, "limit_train_batches": None,
            "val_check_interval": 5, "check_val_every_n_epoch": None, "limit_val_batches": 1.0,
        },
    }  # fmt: skip
    whole = Namespace(**{part: Namespace(**each) for part, each in values.items()})
    whole.model.config = Namespace(**values["model"]["config"])
    for key, value in changes.items():
        whole[key.replace("__", ".")] = value
    return whole


GOOD = [
    {}, {"trainer__val_check_interval": 1.0, "trainer__check_val_every_n_epoch": 2}, {"trainer__min_steps": 10},
    {"trainer__val_check_interval": None, "trainer__check_val_every_n_epoch": 1}, {"trainer__limit_train_batches": 1.0},
    {"trainer__max_steps": -1, "trainer__min_steps": 99, "trainer__max_epochs": 3}, {"trainer__gradient_clip_val": 0},
]  # fmt: skip


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_what_has_a_meaning_is_taken(changes):
    check_numbers("fit", config(**changes))


REFUSED = {
    "trainer__min_steps": (11, "min_steps=11 is more than max_steps=10"),
    "trainer__limit_train_batches": (0.5, "limit_train_batches=0.5: an epoch goes on where the last one ended"),
    "trainer__val_check_interval": (0.25, "must be a whole number of steps"),
    "trainer__check_val_every_n_epoch": (2, "beside trainer.val_check_interval=5"),
    "trainer__gradient_clip_val": (float("inf"), "gradient_clip_val=inf must be a finite number"),
    "model__config.rms_norm_eps": (float("nan"), "rms_norm_eps=nan must be a finite number"),
    "model__betas": ([0.9, float("inf")], r"betas\[1\]=inf must be a finite number"),
    "run__folder": (" ", "run.folder is empty"),
}


@pytest.mark.parametrize(("key", "case"), REFUSED.items(), ids=REFUSED)
def test_what_has_none_is_refused(key, case):
    value, message = case
    with pytest.raises(ValueError, match=message):
        check_numbers("fit", config(**{key: value}))


@pytest.mark.parametrize("value", [0, -1])
def test_an_epoch_that_never_comes(value):
    with pytest.raises(ValueError, match=f"check_val_every_n_epoch={value} must be at least 1"):
        check_numbers("fit", config(trainer__val_check_interval=1.0, trainer__check_val_every_n_epoch=value))


TEXTS = {
    "a key twice in two lines": ("data:\n  context: 8\n  context: 8\n", "context stands in line 2 and in line 3"),
    "a key twice in one line": ("data: {context: 8, context: 16}\n", "context stands in line 1 and in line 1"),
    "a part twice": ("data: {context: 8}\ndata: {context: 16}\n", "data stands in line 1 and in line 2"),
    "octal": ("data: {context: 020}\n", "020 in line 1 is no plain decimal number"),
    "sexagesimal": ("data:\n  context: 1:30\n", "1:30 in line 2 is no plain decimal number"),
    "hexadecimal": ("data: {context: 0x20}\n", "0x20 in line 1"),
    "sexagesimal, with a fraction": ("model: {learning_rate: 1:30.5}\n", "1:30.5 in line 1"),
    "a key in two forms": ("data.context: 16\ndata: {context: 8}\n", "data.context is given twice"),
    "binary": ("data: {context: 0b11}\n", "0b11 in line 1"),
    "an anchor in itself": ("data: &a\n  corpus: *a\n", "hold themselves"),
    "an anchor in a list in itself": ("data:\n  corpus: &a [*a]\n", "hold themselves"),
    "a billion laughs": (
        "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else '1'}]\n" for n in range(9)), "or too much"
    ),
    "a list": ("- data\n", "holds list and no keys"),
    "a part that is a number": ("trainer: 3\n", "trainer=3 must hold keys"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("form", ["file", "=file", "text", "second"])
def test_a_text_that_yaml_would_take_for_something_else(text, message, form, tmp_path):
    path, first = tmp_path / "c.yaml", tmp_path / "first.yaml"
    path.write_text(text)
    first.write_text("data: {context: 8}\n")
    given = {
        "file": ["--config", str(path)], "=file": [f"--config={path}"], "text": ["--config", text],
        "second": ["-c", str(first), "--config", str(path)],
    }[form]  # fmt: skip
    if form == "text" and message.startswith("holds"):
        return  # without keys the parser takes it for a file's name
    with pytest.raises(ValueError, match=message):
        check_arguments(["fit", *given])


@pytest.mark.parametrize(
    "text",
    [
        "data: {context: 8}",
        "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n",
        "model: {learning_rate: 1e-3}",
        "run: {folder: '007'}",
    ],
)
def test_ordinary_texts(text):
    check_arguments(["fit", "--config", text])


def test_a_file_of_one_part_is_read_as_that_part(tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text("context: 8\ncontext: 9\n")
    with pytest.raises(ValueError, match=r"d\.yaml: context stands in line 1 and in line 2"):
        check_arguments(["fit", "--data", str(path)])
    path.write_text("context: 8\n")
    given = ["--data", str(path), "--model.config.hidden_size=3", "--trainer.max_steps", "1"]
    assert check_arguments(["fit", *given]) == {"data.context", "model.config.hidden_size", "trainer.max_steps"}


def test_the_sizes_in_a_file_of_their_own_are_read_too(tmp_path):
    path, whole = tmp_path / "sizes.yaml", tmp_path / "c.yaml"
    path.write_text("hidden_size: 020\n")
    whole.write_text(f"model: {{config: {path}}}\n")
    for given in (["--model.config", str(path)], ["--model.config={hidden_size: 020}"], ["--config", str(whole)]):
        with pytest.raises(ValueError, match="020 in line 1 is no plain decimal number"):
            check_arguments(["fit", *given])


def test_a_run_without_an_end():
    with pytest.raises(ValueError, match="max_steps=-1 is a run without an end"):
        check_numbers("fit", config(trainer__max_steps=-1))


def test_what_lightning_saved_nobody_wrote(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("# pytorch_lightning==2.6.6\nmodel: {config: {hidden_size: 128}}\n")
    assert check_arguments(["fit", "--config", str(path)]) == set()
    path.write_text("model: {config: {hidden_size: 128}}\n")
    assert check_arguments(["fit", "--config", str(path)]) == {"model", "model.config", "model.config.hidden_size"}


@pytest.mark.parametrize("value", ["020", "-010", "0x10", "1:30"])
def test_an_option_of_a_number_that_is_not_decimal(value):
    for given in (["--data.context", value], [f"--data.context={value}"]):
        with pytest.raises(ValueError, match="is no plain decimal number"):
            check_arguments(["fit", *given])
    check_arguments(["fit", "--run.folder", value, f"--data.corpus={value}"])


def test_weights_that_no_memory_holds():
    refuse_too_large(GPTConfig(1000))
    for huge in ({"hidden_size": 4 * 10**8}, {"num_hidden_layers": 10**9}, {"vocab_size": 10**12}):
        with pytest.raises(ValueError, match=r"take .* GiB, and this machine has .*; make model.config smaller"):
            refuse_too_large(GPTConfig(**{"vocab_size": 1000, **huge}))


def test_a_checkpoint_of_another_folder_writes_over_no_run(tmp_path, monkeypatch):
    """A run begun from a file anywhere is one in a folder of its own, also where a link leads to the same place."""
    monkeypatch.setattr("llm_core.run.place.read_checkpoint", lambda path: SimpleNamespace())
    mine, other = tmp_path / "mine" / "checkpoints", tmp_path / "other" / "checkpoints"
    for folder in (mine, other):
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"mine holds a run, .*last\.ckpt would write over; add --ckpt_path last"):
        find_checkpoint(str(other / "last.ckpt"), mine.parent, fits=True)
    (tmp_path / "link").symlink_to(mine.parent)
    own = tmp_path / "link" / "checkpoints" / "last.ckpt"
    assert find_checkpoint(str(own), mine.parent, fits=True) == str(own)
    assert find_checkpoint(str(other / "last.ckpt"), mine.parent, fits=False) == str(other / "last.ckpt")
    assert find_checkpoint(str(other / "last.ckpt"), tmp_path / "new", fits=True) == str(other / "last.ckpt")


def test_killed_before_its_first_last_checkpoint_a_run_goes_on_from_the_best(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llm_core.run.place.read_checkpoint", lambda path: SimpleNamespace())
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.touch()
    assert find_checkpoint("last", tmp_path, fits=True) == str(best)
    assert "going on from best.ckpt" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds a run; add --ckpt_path best"):
        find_checkpoint(None, tmp_path, fits=True)
