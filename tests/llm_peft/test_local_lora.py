"""A fine-tuning under Lightning: a plain loop's losses, checkpoints of the adapter alone, and a run that goes on."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from llm_core.store.atomic import AtomicCheckpoints
from llm_peft.chat.datamodule import ChatDataModule
from llm_peft.command.chat import answer
from llm_peft.command.run import export_adapter, read_trained, trained_model
from llm_peft.local_lora import LocalLoRA, NothingTrained, fit, refuse_wrong_changes
from llm_peft.lora.config import LoRAConfig
from llm_peft.prepare import load_trained_state, prepare, trained_state
from llm_peft.settings import FineTune
from peft import PeftModel
from transformers import AutoModelForCausalLM

SMALL = LoRAConfig(r=4, lora_alpha=8)


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.losses.append(pl_module.step_loss)


def make(base, settings: FineTune, **options) -> LocalLoRA:
    torch.manual_seed(0)
    return LocalLoRA(prepare(str(base), settings), settings, **{"learning_rate": 1e-2, "warmup_steps": 0, **options})


def data_of(examples, **options) -> ChatDataModule:
    return ChatDataModule(str(examples), **{"context": 128, "batch_size": 2, **options})


def run(module: LocalLoRA, data: ChatDataModule, steps: int, **options) -> list[float]:
    seen = Losses()
    fit(module, data, max_steps=steps, accelerator="cpu", limit_val_batches=0, callbacks=[seen], **options)
    return seen.losses


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_ours_in_the_place_of_the_libraries(method, base, examples):
    """The production path and the layers of this package: the same losses."""
    losses, first = {}, None
    for library in ("peft", "ours"):
        module = make(base, FineTune(method=method, lora=SMALL, library=library, dtype="float32"))
        if first is None:
            first = {name: values.clone() for name, values in trained_state(module.model).items()}
        load_trained_state(module.model, first)
        losses[library] = run(module, data_of(examples), 8)
    assert losses["ours"] == pytest.approx(losses["peft"], abs=1e-5)
    assert losses["ours"][-1] < losses["ours"][0] - 0.2


def test_the_losses_of_a_plain_loop(base, examples):
    settings = FineTune(lora=SMALL)
    module, data = make(base, settings, min_lr_ratio=1.0), data_of(examples)
    other = copy.deepcopy(module.model)
    losses = run(module, data, 5)
    data = data_of(examples)
    data.tokenizer = module.prepared.tokenizer
    data.setup()
    trained = [each for each in other.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    for loss, batch in zip(losses, data.train_dataloader(), strict=False):
        found = other(**batch, use_cache=False).loss
        found.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert found.item() == pytest.approx(loss, abs=2e-5)


def test_every_weight(base, examples):
    module = make(base, FineTune(method="full", dtype="float32"), learning_rate=1e-3)
    before = {name: values.clone() for name, values in module.model.state_dict().items()}
    losses = run(module, data_of(examples), 6)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(values, before[name]) for name, values in module.model.state_dict().items())


def test_checkpointing_changes_no_loss(base, examples):
    found = []
    for checkpointing in (False, True):
        module = make(base, FineTune(lora=SMALL, gradient_checkpointing=checkpointing))
        found.append(run(module, data_of(examples), 3))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.2}])
def test_a_run_that_goes_on_is_bit_for_bit_the_same(options, base, examples, tmp_path):
    settings = FineTune(lora=LoRAConfig(r=4, lora_alpha=8, **options))
    whole = make(base, settings)
    expected = run(whole, data_of(examples), 7, plugins=[AtomicCheckpoints()])
    part, data = make(base, settings), data_of(examples)
    data.tokenizer = part.prepared.tokenizer
    keep = Losses()
    trainer = pl.Trainer(
        max_steps=7, accelerator="cpu", devices=1, gradient_clip_val=1.0, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
        callbacks=[keep, Stop(3, tmp_path / "part.ckpt")],
    )  # fmt: skip
    trainer.fit(part, data)
    assert 0 < (tmp_path / "part.ckpt").stat().st_size < 400_000  # the frozen model alone has 260,000 bytes more
    module = make(base, settings)
    with torch.no_grad():  # what it begins with does not matter
        for values in trained_state(module.model).values():
            values.zero_()
    rest, data = Losses(), data_of(examples)
    data.tokenizer = module.prepared.tokenizer
    trainer = pl.Trainer(
        max_steps=7, accelerator="cpu", devices=1, gradient_clip_val=1.0, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0, callbacks=[rest],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=tmp_path / "part.ckpt")
    assert keep.losses + rest.losses == expected
    ours, theirs = trained_state(whole.model), trained_state(module.model)
    assert all(torch.equal(values, theirs[name]) for name, values in ours.items())


class Stop(pl.Callback):
    def __init__(self, step: int, path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def saved(base, examples, path, settings: FineTune) -> LocalLoRA:
    module, data = make(base, settings), data_of(examples)
    trainer = fit(module, data, max_steps=4, accelerator="cpu", limit_val_batches=0)
    trainer.save_checkpoint(path)
    return module


@pytest.mark.parametrize("options", [{}, {"init_lora_weights": "pissa"}, {"use_dora": True}])
def test_a_checkpoint_is_the_adapter_and_peft_reads_it(options, base, examples, tmp_path):
    settings = FineTune(lora=LoRAConfig(r=4, lora_alpha=8, **options), dtype="float32")
    module = saved(base, examples, tmp_path / "last.ckpt", settings)
    names = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert names and all("lora_" in name for name in names)
    ids = torch.arange(40).view(1, 40)
    expected = module.model.eval()(ids).logits
    trained = read_trained(tmp_path / "last.ckpt")
    model, _ = trained_model(trained)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)
    export_adapter(trained, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(ids).logits, expected, rtol=0, atol=1e-5)


def test_a_full_fine_tuning_comes_back(base, examples, tmp_path):
    module = saved(base, examples, tmp_path / "last.ckpt", FineTune(method="full", dtype="float32"))
    model, _ = trained_model(read_trained(tmp_path / "last.ckpt"))
    ids = torch.arange(40).view(1, 40)
    torch.testing.assert_close(model(ids).logits, module.model.eval()(ids).logits, rtol=0, atol=1e-6)


def test_another_base_is_refused(base, examples, tmp_path, tokenizer):
    saved(base, examples, tmp_path / "last.ckpt", FineTune(lora=SMALL))
    other = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight += 0.1
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"was trained on .* has weights .*; give the model that it was trained on"):
        trained_model(read_trained(tmp_path / "last.ckpt"), str(tmp_path / "other"))
    module, data = make(tmp_path / "other", FineTune(lora=SMALL)), data_of(examples)
    data.tokenizer = module.prepared.tokenizer
    trainer = pl.Trainer(max_steps=9, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0)  # fmt: skip
    with pytest.raises(ValueError, match="give the model that it was trained on"):
        trainer.fit(module, data, ckpt_path=tmp_path / "last.ckpt")


def test_a_first_step_that_trains_nothing_is_refused(base, examples):
    module = make(base, FineTune(lora=SMALL))
    module.model.lm_head.weight.requires_grad_(False)
    for part in module.model.modules():
        if hasattr(part, "lora_dropout"):
            part.scaling["default"] = 0.0  # the update has no way to the loss
    with pytest.raises(NothingTrained, match="changed nothing that is trained"):
        run(module, data_of(examples), 2)


def test_a_frozen_weight_that_moves_is_refused(base, examples):
    module = make(base, FineTune(lora=SMALL))

    class Nudge(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            with torch.no_grad():
                pl_module.model.model.norm.weight += 1.0

    with pytest.raises(NothingTrained, match=r"the first step changed model\.norm\.weight, which is frozen"):
        fit(module, data_of(examples), max_steps=2, accelerator="cpu", limit_val_batches=0, callbacks=[Nudge()])


def test_what_a_step_must_change():
    before = {"trained x.lora_A": torch.zeros(2), "trained x.lora_B": torch.zeros(2), "frozen w": torch.zeros(2)}
    refuse_wrong_changes(before, {**before, "trained x.lora_B": torch.ones(2)}, "lora")
    with pytest.raises(NothingTrained, match="nothing that is trained"):
        refuse_wrong_changes(before, {**before, "trained x.lora_A": torch.ones(2)}, "lora")
    with pytest.raises(NothingTrained, match="changed w, which is frozen"):
        refuse_wrong_changes(before, {**before, "frozen w": torch.ones(2)}, "lora")


def test_it_learns_to_answer_and_to_stop(base, examples):
    """Sixty questions by heart, after which it says what it was taught and ends its turn."""
    module = make(base, FineTune(lora=LoRAConfig(r=16, lora_alpha=32)), learning_rate=5e-3, warmup_steps=5)
    data = data_of(examples, batch_size=4)
    run(module, data, 150)
    model = module.model.eval()
    answers = [
        answer(model, module.prepared.tokenizer, [{"role": "user", "content": f"What is {n} plus one?"}], 30)
        for n in (1, 7, 12)
    ]
    assert all(ended and text.startswith("It is") for text, ended in answers), answers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "tune"}, "none of full, lora, qlora"), ({"library": "theirs"}, "none of peft, ours"),
        ({"dtype": "float16"}, "none of auto"), ({"method": "full", "dtype": "bfloat16"}, "take float32"),
        ({"method": "qlora", "lora": LoRAConfig(init_lora_weights="pissa")}, "take lora"),
        ({"method": "qlora", "library": "ours", "lora": LoRAConfig(use_dora=True)}, "take library='peft'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        FineTune(**options)


def test_a_first_step_that_overflows_is_not_compared():
    """With 16-bit floats it is left out, and the factor halved; the next one, at the same factor, counts."""
    before = {"trained x.lora_B": torch.zeros(2)}
    scaler = SimpleNamespace(get_scale=lambda: 32768.0)
    trainer = SimpleNamespace(global_step=1, precision_plugin=SimpleNamespace(scaler=scaler))
    module = SimpleNamespace(_start=before, _scale=65536.0, _probes=lambda: before, trainer=trainer,
                             settings=FineTune())  # fmt: skip
    LocalLoRA.on_train_batch_end(module, None, None, 0)
    assert module._start is before
    with pytest.raises(NothingTrained, match="nothing that is trained"):
        LocalLoRA.on_train_batch_end(module, None, None, 0)


def test_data_that_the_model_is_too_small_for(base, examples):
    with pytest.raises(ValueError, match="context=300, and the model has 256 positions; lower context"):
        run(make(base, FineTune(lora=SMALL)), data_of(examples, context=300), 1)
