"""Sharded checkpoints: the same run on another number of ranks, whole or refused, and one model for transformers."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import trainer_jobs as jobs
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_core.store.registry import load_model
from llm_scale.trainer.checkpoints import (
    SEAL,
    checkpoints_in,
    consolidate,
    name_of,
    shapes_in,
    what_is_wrong,
    write_checkpoint,
)
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

# Another number of ranks sums in another order: 1e-7 of a gradient, so that no bit-equal losses can be asked for.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("checkpoints")
    jobs.write_text(made)
    jobs.data_of(made).prepare_data()
    return made


@pytest.fixture(scope="module")
def saved(folder, two):
    """A run of ten steps under fsdp on two ranks, with a checkpoint after five; its losses."""
    place = folder / "saved"
    return place, two.run(jobs.train, folder, "fsdp", 2, keep=place)[0]["losses"]


def resumed(ranks, saved, folder, strategy, devices, **options):
    arguments = {"resume": str(saved[0] / name_of(5)), **options}
    if ranks is None:
        return [jobs.train(folder, strategy, devices, **arguments)]
    return ranks.run(jobs.train, folder, strategy, devices, **arguments)


@pytest.mark.parametrize(
    ("size", "strategy"),
    [(1, "single"), (2, "fsdp"), (2, "ddp"), (2, "tensor-parallel"), (4, "fsdp")],
)
def test_the_same_run_on_another_number_of_ranks(size, strategy, saved, folder, request):
    ranks = {1: None, 2: "two", 4: "four"}[size]
    results = resumed(ranks and request.getfixturevalue(ranks), saved, folder, strategy, size)
    for result in results:
        assert result["steps"] == [6, 7, 8, 9, 10]
        assert result["losses"] == pytest.approx(saved[1][5:], abs=CLOSE, rel=0)
    assert max(abs(a - b) for a, b in zip(saved[1][:5], saved[1][5:], strict=True)) > 1000 * CLOSE  # steps differ


def test_from_four_ranks_to_two_and_from_one_to_two(folder, saved, two, four):
    four.run(jobs.train, folder, "fsdp", 4, keep=folder / "of-four", steps=5)
    jobs.train(folder, keep=folder / "of-one", steps=5)
    for name in ("of-four", "of-one"):
        for result in resumed(two, (folder / name, None), folder, "fsdp", 2):
            # The schedule of a run of five steps is at its end: only the first loss after it is the same.
            assert result["losses"][0] == pytest.approx(saved_after(saved, folder, name), abs=CLOSE, rel=0)


def saved_after(saved, folder, name):
    """The sixth loss of a run whose first five steps were those of a run of five, in one process."""
    return jobs.train(folder, resume=str(folder / name / name_of(5)), steps=6)["losses"][0]


def test_with_dropout_on_as_many_ranks_it_is_bit_for_bit_the_same(folder, two):
    """The random states of both ranks come back: any other would drop other weights."""
    place = folder / "dropping"
    whole = two.run(jobs.train, folder, "fsdp", 2, dropout=0.3, keep=place)[0]["losses"]
    again = resumed(two, (place, None), folder, "fsdp", 2, dropout=0.3)[0]["losses"]
    assert again == whole[5:]
    other = resumed(None, (place, None), folder, "single", 1, dropout=0.3)[0][
        "losses"
    ]  # one has no states to go on with
    assert other != pytest.approx(whole[5:], abs=10 * CLOSE)


def test_another_model_is_refused(saved, folder, two):
    for told in resumed(two, saved, folder, "fsdp", 2, width=64):
        assert "the checkpoint is of another model: hidden_size=32 (here 64)" in told


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "one byte": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"X" + path.read_bytes()[-8:]),
    "away": Path.unlink,
}


@pytest.mark.parametrize(
    ("how", "name", "words"),
    [
        ("cut short", "__1_0.distcp", r"__1_0.distcp has 1,000 of [\d,]+ bytes"),
        ("one byte", "__0_0.distcp", "__0_0.distcp is not what was written"),
        ("away", "__1_0.distcp", "__1_0.distcp is missing"),
        ("away", ".metadata", ".metadata is missing"),
        ("away", SEAL, "its seal.json is missing or damaged"),
    ],
)
def test_damage_is_refused_and_the_one_before_named(how, name, words, saved, folder, two, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved[0], run)
    DAMAGE[how](run / name_of(10) / name)
    told = two.run(jobs.train, folder, "fsdp", 2, resume=str(run / name_of(10)))
    assert told[0] == told[1]  # also from the rank that did not read the damaged file
    assert re.search(rf"is no whole checkpoint \({words}", told[0])
    assert told[0].endswith(f"the last whole one before it is {run / name_of(5)}")
    DAMAGE["away"](run / name_of(5) / "facts.pt")
    alone = jobs.train(folder, resume=str(run / name_of(10)))
    assert alone.endswith("and there is no whole one before it: begin anew")


def test_a_run_killed_while_it_writes_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / name_of(1)
    write_checkpoint(path, {"model": {"a": torch.arange(3)}}, {"step": 1})

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("llm_scale.trainer.checkpoints.write_facts", killed)
        write_checkpoint(path, {"model": {"a": torch.arange(4)}}, {"step": 2})
    assert what_is_wrong(path) == "" and shapes_in(path)["a"].shape == (3,)
    assert checkpoints_in(tmp_path) == [path]  # what was begun has another name
    write_checkpoint(path, {"model": {"a": torch.arange(5)}}, {"step": 3})
    assert what_is_wrong(path) == "" and shapes_in(path)["a"].shape == (5,)
    assert list(tmp_path.iterdir()) == [path]


def test_the_newest_two_stay(folder, tmp_path):
    jobs.train(folder, keep=tmp_path, steps=16)
    assert [path.name for path in checkpoints_in(tmp_path)] == [name_of(16), name_of(15)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_one_model_for_transformers_and_for_us(precision, folder, saved, two, tmp_path):
    place = saved[0]
    if precision != "32-true":
        place = tmp_path / "narrow"
        two.run(jobs.train, folder, "fsdp", 2, precision=precision, keep=place, steps=5)
    checkpoint, out = place / name_of(5), tmp_path / "out"
    consolidate(checkpoint, out)
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    weights = load_file(out / "model.safetensors")
    assert {each.dtype for each in weights.values()} == {dtype}
    ours, tokenizer = load_model(out)
    theirs = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        # 2e-6: both sum in float32 in orders of their own; logits here are of size 1.
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, atol=2e-6, rtol=0)
    assert tokenizer is not None and tokenizer("alpha").input_ids
    untrained = GPT(GPTConfig(300, 32, num_hidden_layers=2))
    assert len(weights) == len(untrained.state_dict()) - 1  # head and embedding are one
    with pytest.raises(ValueError, match="out exists; give a new folder"):
        consolidate(checkpoint, out)


def test_the_consolidated_model_is_the_one_that_was_trained(folder, saved, tmp_path):
    """Its loss on the rows of the sixth step is the loss that the run had there."""
    consolidate(saved[0] / name_of(5), tmp_path / "out")
    model, _ = load_model(tmp_path / "out")
    data = jobs.data_of(folder)
    data.setup()
    batches = iter(data.train_dataloader())
    sixth = [next(batches) for _ in range(6)][-1]
    with torch.no_grad():
        loss = model(**sixth).loss.item()
    assert loss == pytest.approx(saved[1][5], abs=CLOSE)
