import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from batch_recorder import Recorder, own_text, recorded, train
from llm_data.datamodule import LLMDataModule
from llm_data.shards.manifest import ShardError
from llm_data.text.corpora import Corpus, CorpusError, load_corpus
from llm_data.tokenizers.fast import tokenizer_hash, train_fast_tokenizer

from course.lightning_tools import quiet

TOTAL = 25  # steps, of 9 an epoch
SEARCH_PATH = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return own_text(tmp_path_factory.mktemp("text"))


def data_of(text, **options):
    settings = {"context": 32, "batch_size": 4, "progress": False, "val_percent": 10, "test_percent": 0}
    settings["cache"] = text.parent / "cache"
    return LLMDataModule(f"text:{text}", "bpe-300", **{**settings, **options})


def trainer(folder, **options):
    quiet()
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, num_sanity_val_steps=0, **options,
    )  # fmt: skip


class SaveAt(pl.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


# -- without a Trainer ---------------------------------------------------------------------------------------------


def test_three_lines(text):
    data = data_of(text)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (4, 32) and data.vocab_size <= 300
    tokenizer = data.tokenizer
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    words = tokenizer.decode(batch["input_ids"][0]).replace("<|endoftext|>", " ").replace("<|pad|>", " ").split()
    assert set(words) <= set(["alpha", "beta", "gamma", "delta", "epsilon"])


def test_train_and_validation_share_no_document(text):
    data = data_of(text)
    data.prepare_data()
    data.setup()
    sides = [
        {data.tokenizer.decode(tokens[number][:-1]) for number in range(len(tokens))}
        for tokens in (data.tokens("train"), data.tokens("val"))
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(text.read_text().split("\n\n"))


def ready(text, **options):
    data = data_of(text, **options)
    data.prepare_data()
    data.setup()
    return data


def test_the_position_travels_without_a_trainer_too(text):
    first = ready(text)
    assert set(first.state_dict()) == {"split"}
    batches = iter(first.train_dataloader())
    shown = [next(batches)["input_ids"].tolist() for _ in range(3)]
    rest = [batch["input_ids"].tolist() for batch in batches]
    again = ready(text)
    loader = iter(again.train_dataloader())
    assert [next(loader)["input_ids"].tolist() for _ in range(3)] == shown
    later = ready(text)
    later.load_state_dict(again.state_dict())  # before the loader is made
    assert [batch["input_ids"].tolist() for batch in later.train_dataloader()] == rest
    made = ready(text)
    loader = made.train_dataloader()
    made.load_state_dict(again.state_dict())
    assert [batch["input_ids"].tolist() for batch in loader] == rest


def test_the_tokenizer_is_trained_on_training_documents_only(text):
    corpus = load_corpus(f"text:{text}", val_percent=40, test_percent=0)
    expected = train_fast_tokenizer(corpus.documents("train"), 300)
    assert tokenizer_hash(ready(text, val_percent=40).tokenizer) == tokenizer_hash(expected)
    assert tokenizer_hash(train_fast_tokenizer(corpus.documents(), 300)) != tokenizer_hash(expected)


def test_characters_of_every_side_have_a_token(tmp_path):
    documents = [f"document {number} {chr(0x4E00 + number)}" for number in range(60)]
    corpus = Corpus("mine", "mine", "1", lambda: iter(documents), val_percent=20, test_percent=10)
    data = LLMDataModule(corpus, "char", cache=tmp_path, progress=False)
    data.prepare_data()
    data.setup()
    assert sum(len(data.tokens(split)) for split in ("train", "val", "test")) == 60


def test_dropping_the_last_step_is_for_training(text):
    data = ready(text, drop_last=True, batch_size=4, val_percent=40)
    for split, whole in (("train", False), ("val", True)):
        loader = getattr(data, f"{split}_dataloader")()
        assert len(data.rows(split)) % 4  # there is something to drop
        assert sum(len(batch["input_ids"]) for batch in loader) == len(data.rows(split)) // 4 * 4 + whole * (
            len(data.rows(split)) % 4
        )


def test_only_training_batches_are_shuffled(text):
    data = ready(text, val_percent=40, batch_size=1)
    orders = [[batch["input_ids"].tolist() for batch in data.val_dataloader()] for _ in range(2)]
    loader = data.val_dataloader()
    orders += [[batch["input_ids"].tolist() for batch in loader] for _ in range(2)]
    assert len(orders[0]) > 3 and all(order == orders[0] for order in orders)
    assert len(data.val_dataloader()) == len(data.rows("val"))
    trained = data.train_dataloader()
    assert [batch["input_ids"].tolist() for batch in trained] != [batch["input_ids"].tolist() for batch in trained]


def test_bytes_per_token(text):
    data = data_of(text)
    data.prepare_data()
    data.setup("fit")
    tokens = data.tokens("train")
    size = sum(len(data.tokenizer.decode(tokens[number][:-1]).encode()) for number in range(len(tokens)))
    assert data.bytes_per_token("train") == size / tokens.lengths.sum()


def test_prepare_data_assigns_nothing(text):
    data = data_of(text)
    before = dict(vars(data))
    data.prepare_data()
    assert vars(data) == before


def test_setup_needs_prepare_data(text, tmp_path):
    data = data_of(text, cache=tmp_path)
    with pytest.raises(RuntimeError, match="call prepare_data"):
        data.vocab_size  # noqa: B018
    with pytest.raises(ShardError, match="no token shards"):
        data.setup("fit")


def test_an_empty_side_is_refused_by_prepare_data(text):
    with pytest.raises(CorpusError, match=r"none of its .* falls into 'test'"):
        data_of(text, test_percent=0.001).prepare_data()


def test_it_has_a_name_at_any_time(text):
    data = data_of(text)
    named = str(data)
    data.prepare_data()
    data.setup()
    assert str(data) == named and "context=" in named


def test_stages(text):
    for stage, there in (("fit", {"train", "val"}), ("validate", {"val"}), (None, {"train", "val"})):
        data = data_of(text)
        data.prepare_data()
        data.setup(stage)
        for split in ("train", "val", "test"):
            if split in there:
                assert len(data.tokens(split))
            else:
                with pytest.raises(RuntimeError, match=f"the {split} tokens are not there"):
                    data.tokens(split)
    assert data.test_dataloader() == []


def test_damaged_shards_are_rebuilt_by_prepare_data(text, tmp_path, capsys):
    data = data_of(text, cache=tmp_path)
    data.prepare_data()
    [path] = tmp_path.glob("shards/*/train/*.tokens.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = data_of(text, cache=tmp_path, progress=True)
    again.prepare_data()
    assert path.read_bytes() == whole
    assert "damaged and rebuilt: train-00000" in capsys.readouterr().out


def test_characters(text):
    data = LLMDataModule(f"text:{text}", "char", cache=text.parent / "cache", progress=False, test_percent=0)
    data.prepare_data()
    data.setup()
    assert data.vocab_size == len(set(text.read_text()) - {"\n"}) + 2
    tokens = data.tokens("train")
    assert data.tokenizer.decode(tokens[0][:-1]) in text.read_text()


def test_a_given_corpus_and_tokenizer(text, tmp_path):
    documents = text.read_text().split("\n\n")
    tokenizer = train_fast_tokenizer(documents, 280)
    corpus = Corpus("mine", "mine", "1", lambda: iter(documents), val_percent=0, test_percent=0)
    data = LLMDataModule(corpus, tokenizer, cache=tmp_path, progress=False, context=32)
    data.prepare_data()
    data.setup()
    assert data.tokenizer is tokenizer and data.val_dataloader() == [] and len(data.tokens("train")) == len(documents)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = LLMDataModule(corpus, str(tmp_path / "saved"), cache=tmp_path, progress=False, context=32)
    loaded.setup()  # the same tokenizer by its content, so the shards are there
    assert [batch["input_ids"].tolist() for batch in loaded.train_dataloader()] == [
        batch["input_ids"].tolist() for batch in data.train_dataloader()
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "tight"}, "choose one of static"),
        ({"context": 64.0}, "context=64.0 must be a whole number"),
        ({"batch_size": True}, "batch_size=True must be a whole number"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"corpus": Path("own.txt")}, "write 'text:own.txt'"),
        ({"tokenizer": None}, "not NoneType"),
        ({"context": 1}, "context=1 must be a whole number and at least 2"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number and at least 1"),
        ({"num_workers": -1}, "num_workers=-1 must be a whole number and at least 0"),
        ({"seed": -1}, "seed=-1 must be a whole number and at least 0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LLMDataModule.__init__.__wrapped__(LLMDataModule.__new__(LLMDataModule), **options)


def test_padding_with_the_end_of_text_is_refused():
    tokenizer = train_fast_tokenizer(["some text"], 270)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match=r"must be two tokens.*add_special_tokens"):
        LLMDataModule("python", tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad_token is None"):
        LLMDataModule("python", tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        LLMDataModule("python", tokenizer)


# -- with a Trainer ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(text):
    model = Recorder()
    trainer(text.parent, max_steps=TOTAL, max_epochs=-1).fit(model, data_of(text))
    epochs = [step["epoch"] for step in model.seen]
    assert epochs == sorted(epochs) and epochs[-1] == 2
    return model.seen


@pytest.mark.parametrize("packing", ["best_fit", "bucketed"])
def test_a_resumed_run_is_the_same_run_at_any_step(text, tmp_path, packing, reference):
    whole = Recorder()
    trainer(tmp_path, max_epochs=3).fit(whole, data_of(text, packing=packing))
    length = sum(step["epoch"] == 0 for step in whole.seen)
    for stop in {1, 2, length - 1, length, length + 1, 2 * length}:
        path = tmp_path / f"{stop}.ckpt"
        trainer(tmp_path, max_steps=stop + 1, max_epochs=-1, callbacks=[SaveAt(stop, path)]).fit(
            Recorder(), data_of(text, packing=packing)
        )
        resumed = Recorder()
        trainer(tmp_path, max_epochs=3).fit(resumed, data_of(text, packing=packing), ckpt_path=path)
        assert resumed.seen == whole.seen[stop:], stop


@pytest.mark.parametrize("stop", [1, 8, 9, 10, 18])
def test_a_run_that_was_over_goes_on_with_the_next_batch(text, tmp_path, stop, reference):
    """`max_steps` reached, saved, and a higher `max_steps`: also at an epoch's end, where Lightning alone would show
    one batch and skip the rest of the epoch. Its count of epochs is one ahead; the batches are the right ones."""
    first = trainer(tmp_path, max_steps=stop, max_epochs=-1)
    first.fit(Recorder(), data_of(text))
    first.save_checkpoint(tmp_path / "end.ckpt")
    resumed = Recorder()
    trainer(tmp_path, max_steps=TOTAL, max_epochs=-1).fit(resumed, data_of(text), ckpt_path=tmp_path / "end.ckpt")
    assert [step["ids"] for step in resumed.seen] == [step["ids"] for step in reference[stop:]]


def test_accumulation_validation_and_limits_change_nothing(text, tmp_path, reference):
    options = {"accumulate_grad_batches": 2, "val_check_interval": 3, "limit_train_batches": 5, "max_epochs": 5}
    model = Recorder()
    trainer(tmp_path, **options).fit(model, data_of(text))
    # 9 batches are 5 and 4: where Lightning's limit ends an epoch, the next one takes what is left of the loader's.
    assert [step["epoch"] for step in model.seen] == [0] * 5 + [1] * 4 + [2] * 5 + [3] * 4 + [4] * 5
    assert [step["ids"] for step in model.seen] == [step["ids"] for step in reference[:23]]


def test_every_validation_is_of_the_same_batches(text, tmp_path):
    shown = []

    class Watching(Recorder):
        def validation_step(self, batch, batch_idx):
            shown[-1].append(batch["input_ids"].tolist())

        def on_validation_epoch_start(self):
            shown.append([])

    options = {"val_percent": 40, "batch_size": 2}
    sanity = trainer(tmp_path, max_epochs=3)
    sanity.num_sanity_val_steps = 2
    sanity.fit(Watching(), data_of(text, **options))
    first, *epochs = shown
    assert len(first) == 2 and len(epochs) == 3 and len(epochs[0]) > 4
    assert first == epochs[0][:2] and epochs[0] == epochs[1] == epochs[2]
    shown.clear()
    trainer(tmp_path, max_epochs=2, limit_val_batches=3).fit(Watching(), data_of(text, **options))
    assert shown == [epochs[0][:3]] * 2


def test_overfitting_shows_the_same_batches_again(text, tmp_path):
    model = Recorder()
    trainer(tmp_path, max_epochs=3, overfit_batches=2).fit(model, data_of(text))
    ids = [step["ids"] for step in model.seen]
    assert len(ids) == 6 and ids[:2] == ids[2:4] == ids[4:] and ids[0] != ids[1]


def test_a_reloaded_loader_goes_on(text, tmp_path, reference):
    model, data = Recorder(), data_of(text)
    trainer(tmp_path, max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(model, data)
    length = sum(step["epoch"] == 0 for step in reference)
    assert model.seen == reference[: 2 * length]
    path = tmp_path / "3.ckpt"
    trainer(tmp_path, max_steps=4, max_epochs=-1, callbacks=[SaveAt(3, path)]).fit(Recorder(), data_of(text))
    resumed = Recorder()
    trainer(tmp_path, max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(resumed, data_of(text), ckpt_path=path)
    assert [step["ids"] for step in resumed.seen] == [step["ids"] for step in reference[3 : 2 * length]]


def test_a_second_fit_goes_on(text, tmp_path, reference):
    model, data = Recorder(), data_of(text)
    for _ in range(2):
        trainer(tmp_path, max_epochs=1).fit(model, data)
    assert [step["ids"] for step in model.seen] == [step["ids"] for step in reference[: len(model.seen)]]


def test_an_unknown_stage_or_tokenizer_is_refused(text, monkeypatch):
    with pytest.raises(ValueError, match="stage 'train': choose fit"):
        data_of(text).setup("train")

    def absent(name):
        raise OSError(f"{name} is not a local folder")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", absent)
    data = LLMDataModule(f"text:{text}", "bpe4096", cache=text.parent / "cache", progress=False, test_percent=0)
    with pytest.raises(ValueError, match="tokenizer 'bpe4096' is neither bpe-N"):
        data.prepare_data()


def test_workers_under_lightning(text, tmp_path, reference):
    path = tmp_path / "4.ckpt"
    options = {"num_workers": 2}
    first = trainer(tmp_path, max_steps=5, max_epochs=-1, callbacks=[SaveAt(4, path)])
    first.fit(Recorder(), data_of(text, **options))
    resumed = Recorder()
    trainer(tmp_path, max_steps=12, max_epochs=-1).fit(resumed, data_of(text, **options), ckpt_path=path)
    assert resumed.seen == reference[4:12]


def test_a_checkpoint_of_other_data_is_refused(text, tmp_path):
    path = tmp_path / "2.ckpt"
    first = trainer(tmp_path, max_steps=3, max_epochs=-1, callbacks=[SaveAt(2, path)])
    first.fit(Recorder(), data_of(text))
    with pytest.raises(ValueError, match="belongs to other rows"):
        trainer(tmp_path, max_steps=4, max_epochs=-1).fit(Recorder(), data_of(text, context=16), ckpt_path=path)


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_checkpoint_keeps_other_runs_from_judging_what_it_was_trained_on(text, tmp_path, stage):
    path = tmp_path / "2.ckpt"
    trainer(tmp_path, max_steps=3, max_epochs=-1, callbacks=[SaveAt(2, path)]).fit(Recorder(), data_of(text))
    later = trainer(tmp_path, max_steps=4, max_epochs=-1)
    getattr(later, stage)(Recorder(), datamodule=data_of(text), ckpt_path=path)
    with pytest.raises(
        ValueError, match=r"val side holds documents that the checkpoint was trained on: .*val_percent=10"
    ):
        getattr(later, stage)(Recorder(), datamodule=data_of(text, val_percent=30), ckpt_path=path)


def test_killed_at_random_steps(text, tmp_path, reference):
    """SIGKILL, as often as it takes; every step of the run is one of the reference's, and after a restart the run goes
    on right after the last checkpoint."""
    data_of(text).prepare_data()
    log = tmp_path / "log"
    draw = random.Random(0)
    kills = [draw.randint(2, 10), draw.randint(11, 20)]
    for kill in [*kills, None]:
        command = [sys.executable, "-m", "batch_recorder", str(text), str(tmp_path), str(log), str(TOTAL)]
        environment = {**os.environ, "PYTHONPATH": SEARCH_PATH}
        child = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 150
        while child.poll() is None:
            assert time.monotonic() < deadline
            if kill is not None and max((step["step"] for step in recorded(log)), default=0) >= kill:
                child.send_signal(signal.SIGKILL)
                child.wait()
            time.sleep(0.002)
        assert child.returncode == (0 if kill is None else -signal.SIGKILL)
    steps = recorded(log)
    by_step = {step["step"]: step["ids"] for step in steps}
    assert by_step == {number: step["ids"] for number, step in enumerate(reference)}
    assert all(by_step[step["step"]] == step["ids"] for step in steps)  # also what was trained twice, around a kill
    assert len(steps) <= TOTAL + 2 * len(kills)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_ranks_change_between_runs(text, tmp_path, before, after, reference):
    """Two processes under Lightning's own launcher, saved in the middle of an epoch, resumed on another number."""
    data_of(text).prepare_data()
    seen = []
    for world, total in ((before, 3), (after, 40)):
        log = tmp_path / f"log-{world}"
        arguments = [str(text), str(tmp_path), str(log), str(total), "--one-epoch"]
        if world == 1:
            train(*arguments)
        else:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            environment = {**os.environ, "PYTHONPATH": SEARCH_PATH, "OMP_NUM_THREADS": "1"}
            done = subprocess.run([*command, "-m", "batch_recorder", *arguments], env=environment, capture_output=True)
            assert done.returncode == 0, done.stderr.decode()
        seen += recorded(log)
    rows = [tuple(row) for step in seen for row in step["rows"]]
    epoch = [tuple(row) for step in reference if step["epoch"] == 0 for row in step["rows"]]
    assert sorted(rows) == sorted(epoch)
    assert {step["rank"] for step in seen} == {0, 1}


def test_lightning_finds_the_position_in_the_checkpoint(text, tmp_path):
    path = tmp_path / "3.ckpt"
    trainer(tmp_path, max_steps=4, max_epochs=-1, callbacks=[SaveAt(3, path)]).fit(Recorder(), data_of(text))
    saved = torch.load(path, weights_only=True)
    state = saved["LLMDataModule"]["train"]
    assert state["rows"] == 12 and state["steps"] == 3 and state["epoch"] == 0
    assert saved["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [state]
