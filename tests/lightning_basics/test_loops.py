"""The recipe, the loop by hand and the loop by Lightning: the same losses, exact resume, and plain errors."""

import json
import math
from pathlib import Path
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
from lightning_basics import counting, vanilla
from lightning_basics.classifier import ClassifierConfig, LineClassifier
from lightning_basics.lit import LineDataModule, LitLineClassifier
from lightning_basics.recipe import (
    Recipe,
    ShuffledBatches,
    learning_rate_factor,
    make_optimizer,
    train_loader,
    val_loader,
)
from torch.utils.data import DataLoader, TensorDataset

from course.lightning_tools import quiet

CONFIG = ClassifierConfig(vocab_size=40, context=8, d_model=16, num_layers=1)
SHORT = Recipe(max_steps=24, batch_size=8, warmup_steps=3, val_check_interval=5, patience=99)


@pytest.fixture(scope="module")
def lines():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(2, 40, (80, 8), generator=generator)
    return inputs, inputs[:, 0] % 3


def run(lines, recipe: Recipe = SHORT, **options):
    torch.manual_seed(0)
    model = LineClassifier(CONFIG)
    return vanilla.fit(model, train_loader(*lines, recipe), val_loader(*lines), recipe, **options), model


# ---- recipe ----------------------------------------------------------------------------------------------------------


def test_learning_rate_factor() -> None:
    recipe = Recipe(max_steps=110, warmup_steps=10)
    factors = [learning_rate_factor(step, recipe) for step in range(110)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)
    assert learning_rate_factor(5000, recipe) == 0
    assert learning_rate_factor(0, Recipe(max_steps=10, warmup_steps=0)) == 1.0


def test_vectors_do_not_decay() -> None:
    model = LineClassifier(CONFIG)
    optimizer, _ = make_optimizer(model, SHORT)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {p.ndim > 1: decays[id(p)] for p in model.parameters()} == {True: 0.01, False: 0.0}
    assert len(decays) == len(list(model.parameters()))


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    first, again, other = (ShuffledBatches(83, 8, seed) for seed in (0, 0, 1))
    assert list(first) == list(again) != list(other)
    epoch_0 = list(first)
    first.set_epoch(1)
    assert list(first) != epoch_0
    first.set_epoch(0)
    assert list(first) == epoch_0
    assert len(first) == len(epoch_0) == 10
    flat = [index for batch in epoch_0 for index in batch]
    assert len(set(flat)) == len(flat) == 80 and set(flat) <= set(range(83))


def test_loaders_leave_the_global_random_state_alone(lines) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for loader in (train_loader(*lines, SHORT), val_loader(*lines)):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 0}, "max_steps=0"),
        ({"warmup_steps": 500}, r"warmup_steps=500: must be in \[0, max_steps=500\)"),
        ({"precision": "16"}, "use '32-true' or 'bf16-mixed'"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"patience": 0}, "patience=0"),
    ],
)
def test_impossible_recipes(values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**values)
    with pytest.raises(ValueError, match=r"batch_size=9: must be in \[1, 8\]"):
        ShuffledBatches(8, 9, 0)


# ---- the loop by hand ------------------------------------------------------------------------------------------------


def test_it_learns(lines) -> None:
    progress, _ = run(lines, Recipe(max_steps=200, batch_size=8, learning_rate=1e-2, val_check_interval=200))
    assert progress.losses[0] == pytest.approx(math.log(3), rel=0.25)
    assert progress.validations[-1][2] > 0.9


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("stop_after", [7, 11, 14, 17])
def test_a_resumed_run_is_the_same_run(lines, tmp_path: Path, stop_after: int, accumulate: int) -> None:
    # Validations fall inside accumulations, and the epoch of 10 batches ends inside one of 3.
    recipe = Recipe(
        max_steps=24 // accumulate, batch_size=8, warmup_steps=3, val_check_interval=5, patience=99,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    whole, model = run(lines, recipe)
    killed, _ = run(lines, recipe, folder=tmp_path, stop_after=stop_after)
    assert 0 < len(killed.losses) < len(whole.losses)
    resumed, same = run(lines, recipe, folder=tmp_path, resume=True)
    assert resumed == whole
    for name, value in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], value), name


@pytest.mark.parametrize("lost", ["torch.set_rng_state", "torch.optim.AdamW.load_state_dict"])
def test_what_a_resume_cannot_do_without(lines, tmp_path: Path, lost: str) -> None:
    whole, _ = run(lines)
    run(lines, folder=tmp_path, stop_after=11)
    with mock.patch(lost):
        resumed, _ = run(lines, folder=tmp_path, resume=True)
    assert resumed.losses[:10] == whole.losses[:10]
    assert resumed.losses[10:] != whole.losses[10:]


def test_a_crash_while_saving_keeps_the_old_checkpoint(lines, tmp_path: Path) -> None:
    run(lines, folder=tmp_path, stop_after=7)
    before = (tmp_path / "last.pt").read_bytes()

    def power_cut(state, path) -> None:
        path.write_bytes(b"half")
        raise OSError("power cut")

    with mock.patch("torch.save", power_cut), pytest.raises(OSError, match="power cut"):
        run(lines, folder=tmp_path, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_metrics_are_lines_of_json(lines, tmp_path: Path) -> None:
    progress, _ = run(lines, folder=tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["batch"] for record in records] == [5, 10, 15, 20]
    assert [(r["batch"], r["val_loss"], r["val_accuracy"]) for r in records] == progress.validations


def test_early_stop(lines) -> None:
    recipe = Recipe(max_steps=400, batch_size=8, learning_rate=1e-9, warmup_steps=0, val_check_interval=2, patience=3)
    validations = [(loss, 0.5) for loss in (1.0, 0.9, 0.9, 0.95, 1.1, 0.1)]
    with mock.patch.object(vanilla, "evaluate", side_effect=validations):
        progress, _ = run(lines, recipe)
    assert progress.stopped_early
    assert len(progress.validations) == 5
    assert progress.batch == 10


def test_a_loss_that_is_not_finite_stops_the_run(lines, tmp_path: Path) -> None:
    def poisoned(parameters, *_):
        for p in parameters:
            p.data.fill_(math.nan)
        return torch.tensor(1.0)

    run(lines, folder=tmp_path, stop_after=7)
    with mock.patch("torch.nn.utils.clip_grad_norm_", poisoned), pytest.raises(FloatingPointError, match="batch 6"):
        run(lines, folder=tmp_path, resume=True)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["model"]["head.bias"].isfinite().all()


def test_resume_without_a_checkpoint(lines, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*; start without resume=True"):
        run(lines, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="needs the folder"):
        run(lines, resume=True)


def test_evaluate_weighs_lines_not_batches(lines) -> None:
    model = LineClassifier(CONFIG).train()
    whole = vanilla.evaluate(model, [lines])
    parts = vanilla.evaluate(model, list(zip(lines[0].split(33), lines[1].split(33), strict=True)))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert model.training
    assert vanilla.evaluate(model.eval(), [lines]) == whole and not model.training


def test_mixed_precision_runs_and_keeps_float32_weights(lines) -> None:
    recipe = Recipe(max_steps=3, batch_size=8, warmup_steps=0, precision="bf16-mixed", val_check_interval=3)
    mixed, model = run(lines, recipe)
    full, _ = run(lines, Recipe(max_steps=3, batch_size=8, warmup_steps=0, val_check_interval=3))
    assert model.head.weight.dtype == torch.float32
    assert mixed.losses != full.losses
    assert mixed.losses == pytest.approx(full.losses, rel=0.02)  # bf16 rounds to 2**-8, over a few layers


# ---- the loop by Lightning -------------------------------------------------------------------------------------------


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, *_) -> None:
        self.values.append(trainer.callback_metrics["train_loss"].item())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_lightning_gives_the_same_losses(lines, accumulate: int, precision: str) -> None:
    quiet()
    recipe = Recipe(
        max_steps=24, batch_size=8, warmup_steps=3, val_check_interval=7, patience=99, gradient_clip_val=0.5,
        accumulate_grad_batches=accumulate, precision=precision,
    )  # fmt: skip
    by_hand, model = run(lines, recipe)
    assert max(by_hand.grad_norms) > 0.5  # clipping is at work
    losses = Losses()
    torch.manual_seed(0)
    module = LitLineClassifier(CONFIG, recipe)
    trainer = pl.Trainer(
        max_steps=24, precision=precision, gradient_clip_val=0.5, accumulate_grad_batches=accumulate,
        val_check_interval=7, check_val_every_n_epoch=None, accelerator="cpu", callbacks=[losses], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, train_loader(*lines, recipe), val_loader(*lines))
    assert losses.values == by_hand.losses  # on one CPU thread or two: the same operations in the same order
    assert len(losses.values) == by_hand.batch
    for name, value in model.state_dict().items():
        assert torch.equal(module.model.state_dict()[name], value), name
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(by_hand.validations[-1][1], rel=1e-5)


def test_the_data_module_is_set_up_once(tmp_path: Path) -> None:
    for number in range(12):
        text = f'"""What file {number} is about."""\n# a comment of file {number}\nvalue_{number} = compute()\n'
        (tmp_path / f"file_{number}.py").write_text(text)
    data = LineDataModule(Recipe(batch_size=2), context=6, vocab_size=30, per_class=4, root=tmp_path)
    data.setup()
    tensors = data.tensors
    data.setup("fit")
    assert data.tensors is tensors
    inputs, labels = next(iter(data.train_dataloader()))
    assert inputs.shape == (2, 6) and labels.shape == (2,)
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 3


# ---- counting --------------------------------------------------------------------------------------------------------


def test_code_lines_leave_out_what_is_not_code() -> None:
    def sample(a):
        """A docstring

        of three lines."""
        # a comment

        # fmt: off
        b = (
            a
            + 1
        )
        # fmt: on
        return b

    assert counting.code_lines(sample) == 3


def test_shuffled_loader_hands_out_whole_batches(lines) -> None:
    loader = train_loader(*lines, SHORT)
    assert isinstance(loader, DataLoader) and isinstance(loader.dataset, TensorDataset)
    assert [len(labels) for _, labels in loader] == [8] * 10
