"""When a run validates and what it keeps, batch by batch; what a checkpoint of somebody else may not do."""

import math

import pytest
import pytorch_lightning as pl
import torch
from llm_core.babygpt import BabyGPT
from llm_core.run.callbacks import RunCheckpoints, ValidateEverySteps
from llm_core.store.resume import forget_foreign_places
from loss_callbacks import CONFIG, Rows, train
from pytorch_lightning.callbacks import ModelCheckpoint


class Seen(pl.Callback):
    """Batches of each step; steps after which a validation ran, and whether a step was half done then."""

    def __init__(self):
        self.batches, self.validations, self.saved = [0], [], []

    def on_train_batch_end(self, trainer, *_):
        self.batches[-1] += 1
        if trainer.global_step == len(self.batches):
            self.batches.append(0)

    def on_validation_start(self, trainer, *_):
        if not trainer.sanity_checking:
            self.validations.append((trainer.global_step, self.batches[-1]))

    def on_save_checkpoint(self, trainer, *_):
        self.saved.append((trainer.global_step, self.batches[-1]))


@pytest.mark.parametrize("accumulate", [1, 2, 4, 5])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_validations_and_checkpoints_are_between_two_steps(accumulate, every, tmp_path):
    """Epochs of 12 batches: 5 do not divide them, and the last step of each epoch is a short one."""
    seen = Seen()
    callbacks = [seen, ValidateEverySteps(every), RunCheckpoints(tmp_path, 2)]
    options = {"callbacks": callbacks, "enable_checkpointing": True, "num_sanity_val_steps": 0}
    _, trainer = train(2, accumulate, 7, val_check_interval=every, check_val_every_n_epoch=None, **options)
    assert trainer.global_step == 7
    assert seen.validations == [(step, 0) for step in range(1, 8) if step % every == 0]
    assert {step for step, _ in seen.saved} >= {2, 4, 6} and all(half == 0 for _, half in seen.saved)


def test_validation_at_the_end_of_each_epoch_stays_lightnings_own(tmp_path):
    seen = Seen()
    train(2, 5, 9, callbacks=[seen, RunCheckpoints(tmp_path, 100)], enable_checkpointing=True, num_sanity_val_steps=0)
    assert seen.validations == [(3, 0), (6, 0), (9, 0)]
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}  # at the run's end


def test_where_both_fall_on_a_step_the_last_checkpoint_comes_after_the_validation(tmp_path):
    order = []

    class Told(RunCheckpoints):
        def on_validation_end(self, trainer, pl_module):
            order.append("validated")
            super().on_validation_end(trainer, pl_module)

    class Save(pl.Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            order.append(trainer.global_step)

    callbacks = [Save(), ValidateEverySteps(2), Told(tmp_path, 2)]
    train(
        4, 1, 4, callbacks=callbacks, enable_checkpointing=True, num_sanity_val_steps=0, check_val_every_n_epoch=None,
        val_check_interval=2,
    )  # fmt: skip
    assert order[0] == "validated" and order.count("validated") == 2
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["callbacks"][callbacks[2].state_key]["best_val_loss"] == callbacks[2].best_val_loss < math.inf


def test_the_best_is_known_again_in_a_folder_that_was_moved_and_not_in_another(tmp_path):
    kept = RunCheckpoints(tmp_path / "old", 1)
    kept.best_val_loss = 1.5
    state = kept.state_dict()
    assert not any(isinstance(value, str) for value in state.values())  # no path
    moved, new = RunCheckpoints(tmp_path / "moved", 1), RunCheckpoints(tmp_path / "new", 1)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "best.ckpt").touch()
    moved.load_state_dict(state)
    new.load_state_dict(state)
    assert (moved.best_val_loss, new.best_val_loss) == (1.5, math.inf)


FOREIGN = [
    "local://{}/victim",
    "{}/own/../victim",
    "{}/own//victim",
    "{}/victim",
    "{}/own/sub/x.ckpt",
    "victim",
    "{}/own",
]


@pytest.mark.parametrize("key", ["last_model_path", "kth_best_model_path", "best_k_models"])
@pytest.mark.parametrize("form", FOREIGN)
def test_a_state_that_names_a_place_outside_its_folder_is_dropped(form, key, tmp_path):
    path = form.format(tmp_path)
    state = {"dirpath": f"{tmp_path}/own", key: {path: 1.0} if key == "best_k_models" else path}
    checkpoint = {"callbacks": {"ModelCheckpoint{}": state, "Other": {"count": 3}}}
    forget_foreign_places(checkpoint)
    assert checkpoint["callbacks"] == {"Other": {"count": 3}}


def test_what_lightning_writes_itself_stays(tmp_path):
    """And a folder that a hostile file names is there after a run that went on from it."""
    kept = ModelCheckpoint(tmp_path / "own", save_last=True, every_n_train_steps=1)
    train(4, 1, 2, callbacks=[kept], enable_checkpointing=True)
    saved = torch.load(tmp_path / "own" / "last.ckpt", weights_only=True)
    before = dict(saved["callbacks"])
    forget_foreign_places(saved)
    assert saved["callbacks"] == before

    (tmp_path / "victim").mkdir()
    (name,) = (name for name in before if "ModelCheckpoint" in name)
    for path in (f"local://{tmp_path}/victim", f"{tmp_path}/own/../victim"):
        saved["callbacks"][name] = {**before[name], "last_model_path": path}
        torch.save(saved, tmp_path / "hostile.ckpt")
        again = ModelCheckpoint(tmp_path / "own", save_last=True, every_n_train_steps=1)
        module = BabyGPT(CONFIG, warmup_steps=1, learning_rate=1e-2)
        trainer = pl.Trainer(
            max_steps=4, accelerator="cpu", callbacks=[again], logger=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        rows = torch.utils.data.DataLoader(Rows(), batch_size=4)
        trainer.fit(module, rows, rows, ckpt_path=tmp_path / "hostile.ckpt", weights_only=True)
        assert trainer.global_step == 4 and (tmp_path / "victim").is_dir()
