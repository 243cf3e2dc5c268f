"""BabyGPT's loss, its gradients and its logs against the formulas; what stops a run."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from llm_core.babygpt import BabyGPT, NonFiniteLoss
from llm_core.model import GPT, GPTConfig
from llm_core.store.registry import load_model
from llm_data.datamodule import LLMDataModule
from llm_data.text.corpora import load_corpus
from loss_callbacks import CONFIG, Rows, own_text, train
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM


def by_hand(steps, batch_size, clip=math.inf, weight_decay=0.1, seed=0):
    """The same run without Lightning: loss of a step is a mean over its targets; rates from the schedule's formula."""
    pl.seed_everything(seed, verbose=False)
    model = GPT(CONFIG)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0}], betas=(0.9, 0.95)
    )
    rows, logs = Rows(), []
    for step in range(steps):
        at = slice(step * batch_size, (step + 1) * batch_size)
        progress = step / (steps - 1)  # one step of warm-up, at the full rate
        rate = 1e-2 if step == 0 else 1e-2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(rows.ids[at]).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), rows.labels[at, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        logs.append({"train_loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate})
    return model, logs


def same_weights(ours, theirs):
    # Adam divides by the gradient's size: where it is nearly 0, a rounding error becomes part of a step of 1e-2.
    atol = 5e-5
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


class Logs(pl.Callback):
    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step > len(self.steps):
            self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class Held(pl.Callback):
    """How many parameters hold a gradient when a batch begins."""

    def __init__(self):
        self.counts = []

    def on_train_batch_start(self, trainer, module, *_):
        self.counts.append(sum(each.grad is not None for each in module.parameters()))


def test_gradients_are_gone_before_the_next_forward_pass_and_stay_inside_a_step():
    """Beside all that a forward pass saves, the gradients of a 7B in bfloat16 are 13 GB."""
    held = Held()
    module, _ = train(4, 2, callbacks=[held], limit_val_batches=0)
    every = len(list(module.parameters()))
    assert held.counts == [0, every] * 3


@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (4, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_run_is_the_same_however_its_steps_are_cut(batch_size, accumulate, clip):
    logs = Logs()
    module, _ = train(batch_size, accumulate, gradient_clip_val=clip, callbacks=[logs], limit_val_batches=0)
    expected, steps = by_hand(3, 8, clip or math.inf)
    same_weights(module.model, expected)
    for found, wanted in zip(logs.steps, steps, strict=True):
        assert found["train_perplexity"] == pytest.approx(math.exp(found["train_loss"]), rel=1e-5)
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=2e-5)
        assert found["tokens_per_second"] > 0


def test_every_nth_step_is_logged_and_each_has_its_loss():
    logs, losses = Logs(), []
    keep = pl.callbacks.LambdaCallback(on_train_batch_end=lambda _, module, *__: losses.append(module.step_loss))
    train(8, callbacks=[logs, keep], log_every_n_steps=2, limit_val_batches=0)
    expected = [log["train_loss"] for log in by_hand(3, 8, math.inf)[1]]
    assert losses == pytest.approx(expected, rel=2e-5)
    assert not logs.steps[0] and logs.steps[1] == logs.steps[2]
    assert logs.steps[1]["train_loss"] == pytest.approx(expected[1], rel=2e-5)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (4, 2)])
def test_a_step_without_targets_changes_nothing(monkeypatch, batch_size, accumulate):
    monkeypatch.setattr(Rows, "__getitem__", lambda rows, place: {
        "input_ids": rows.ids[place], "labels": torch.full_like(rows.labels[place], -100)
    })  # fmt: skip
    module = BabyGPT(CONFIG, weight_decay=0, warmup_steps=0)
    before = {name: values.clone() for name, values in module.state_dict().items()}
    given = []
    keep = pl.callbacks.LambdaCallback(on_train_batch_end=lambda _, __, outputs, *___: given.append(outputs["loss"]))
    train(batch_size, accumulate, steps=1, module=module, limit_val_batches=0, callbacks=[keep])
    assert [loss.item() for loss in given] == [0] * accumulate
    for name, values in module.state_dict().items():
        torch.testing.assert_close(values, before[name], rtol=0, atol=0)


def test_two_processes_are_one_with_twice_the_rows(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "loss_callbacks"]
    search = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    done = subprocess.run([*command, str(tmp_path / "out")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out", weights_only=True)
    expected, trainer = train(8)
    loaded = BabyGPT(CONFIG)
    loaded.load_state_dict(out["weights"])
    same_weights(loaded.model, expected.model)
    for name in ("train_loss", "grad_norm", "val_loss", "learning_rate"):
        assert out["metrics"][name] == pytest.approx(trainer.callback_metrics[name].item(), rel=1e-5)


def test_validation_is_a_mean_over_all_targets():
    module, trainer = train(5, steps=2)
    rows = Rows()
    with torch.no_grad():
        logits = module.model(rows.ids).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten()).item()
    assert trainer.validate(module, trainer.val_dataloaders, verbose=False)[0]["val_loss"] == pytest.approx(expected)
    tested = trainer.test(module, trainer.val_dataloaders, verbose=False)[0]
    assert tested == pytest.approx({"test_loss": expected, "test_perplexity": math.exp(expected)})


OTHERS = {
    "ours": lambda: GPT(CONFIG),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16, resid_pdrop=0, embd_pdrop=0,
                   attn_pdrop=0)
    ),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                      intermediate_size=64, max_position_embeddings=16)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_packed_rows_cost_what_each_document_alone_does(name):
    """Without `use_cache=False`, models of transformers would look across the border, in silence."""
    torch.manual_seed(0)
    model = OTHERS[name]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ids = Rows().ids[:3]
    labels = ids.clone()
    labels[:, 6] = -100
    packed = {"input_ids": ids, "labels": labels, "position_ids": torch.tensor([[*range(6), *range(10)]] * 3)}
    total, targets = BabyGPT(model).loss(packed)
    parts = [BabyGPT(model).loss({"input_ids": each, "labels": each}) for each in (ids[:, :6], ids[:, 6:])]
    assert targets == sum(number for _, number in parts) == 3 * 14
    torch.testing.assert_close(total, sum(part for part, _ in parts))
    chunked, number = BabyGPT(model, loss_chunk=7).loss(packed)
    assert number == targets
    torch.testing.assert_close(chunked, total)
    assert torch.equal(BabyGPT(model)(ids), model(ids).logits)


def test_any_model_trains(tmp_path):
    for name, make in OTHERS.items():
        torch.manual_seed(0)
        model = make()
        _, trainer = train(8, module=BabyGPT(model, learning_rate=3e-3, warmup_steps=2), steps=40, max_epochs=-1)
        assert trainer.callback_metrics["val_loss"] < 0.9 * math.log(50), name
        if name != "ours":
            model.save_pretrained(tmp_path / name)
            again = BabyGPT.from_pretrained(tmp_path / name)
            assert all(module.training for module in again.modules())  # dropout is there when it trains on
            assert torch.equal(again.eval()(Rows().ids), model.eval()(Rows().ids).logits)
            assert isinstance(again.model, type(AutoModelForCausalLM.from_pretrained(tmp_path / name)))


def test_from_pretrained_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="gives no causal language model"):
        BabyGPT.from_pretrained(tmp_path)


class Poison(pl.Callback):
    """Makes one weight not a number before a step's batch."""

    def __init__(self, step):
        self.step, self.weights = step, None

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.model.lm_head.weight[3, 0] = math.nan

    def on_before_optimizer_step(self, trainer, pl_module, *_):
        self.weights = {name: values.clone() for name, values in pl_module.state_dict().items()}


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, save_top_k=0)
    poison, logs = Poison(2), Logs()
    module = BabyGPT(CONFIG, warmup_steps=1)
    with pytest.raises(NonFiniteLoss) as caught:
        train(8, module=module, callbacks=[poison, logs, checkpoint], enable_checkpointing=True)
    told = str(caught.value)
    assert "step 3: loss nan, gradient norm nan" in told
    assert f"last good loss was {logs.steps[1]['train_loss']:.4f}" in told
    for cause in ("learning rate", "warm-up", "clipping", "bf16"):
        assert cause in told
    for name, values in module.state_dict().items():  # the step was not taken
        assert torch.equal(values.nan_to_num(), poison.weights[name].nan_to_num()), name
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(values.isfinite().all() for values in saved["state_dict"].values())


def test_an_infinite_gradient_stops_it_too():
    class Blow(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            pl_module.model.model.norm.weight.grad[0] = math.inf

    with pytest.raises(NonFiniteLoss, match="gradient norm inf; the last good loss was none"):
        train(8, callbacks=[Blow()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio=1.5"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"loss_chunk": -1}, "loss_chunk=-1"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BabyGPT(CONFIG, **options)


def test_runs_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="warmup_steps=3 leaves nothing of a run of 3 steps"):
        train(8, module=BabyGPT(CONFIG, warmup_steps=3))
    with pytest.raises(ValueError, match="max_steps or max_epochs"):
        train(8, steps=-1, max_epochs=-1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    corpus = load_corpus(f"text:{own_text(folder)}", val_percent=10, test_percent=10)
    made = LLMDataModule(corpus, "bpe-300", context=32, batch_size=4, progress=False, cache=folder / "cache")
    made.prepare_data()
    made.setup()
    return made


def fit(module, data, folder, **options):
    trainer = pl.Trainer(**{
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "max_steps": 3, "log_every_n_steps": 1, "default_root_dir": folder, "enable_checkpointing": False, **options,
    })  # fmt: skip
    trainer.fit(module, data)
    return trainer


def test_with_a_datamodule(data, tmp_path):
    config = GPTConfig(data.vocab_size, hidden_size=32, max_position_embeddings=32)
    trainer = fit(BabyGPT(config, warmup_steps=1), data, tmp_path, val_check_interval=3, check_val_every_n_epoch=None)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    for split in ("train", "val"):
        manifest = data.tokens(split).manifest
        expected = metrics[f"{split}_loss"] / math.log(2) * manifest.tokens / manifest.text_bytes
        assert metrics[f"{split}_bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    model, tokenizer = load_model(tmp_path / "a.ckpt")
    assert model.config == config
    assert tokenizer("alpha beta").input_ids == data.tokenizer("alpha beta").input_ids


def test_a_model_too_small_for_the_data_is_refused(data, tmp_path):
    size = data.vocab_size
    with pytest.raises(ValueError, match=f"the tokenizer has {size} tokens and the model a vocab_size of {size - 1}"):
        fit(BabyGPT(GPTConfig(size - 1, hidden_size=32), warmup_steps=1), data, tmp_path)
    with pytest.raises(ValueError, match="context=32 and the model has max_position_embeddings=31"):
        fit(BabyGPT(GPTConfig(size, hidden_size=32, max_position_embeddings=31), warmup_steps=1), data, tmp_path)


def test_a_context_longer_than_the_text_is_refused(data, tmp_path):
    long = LLMDataModule(data._given_corpus, "bpe-300", context=8192, progress=False, cache=data._cache)
    with pytest.raises(ValueError, match=r"context=8192 and text:.* has [\d,]+ tokens to train on"):
        fit(BabyGPT(GPTConfig(400, hidden_size=32, max_position_embeddings=8192), warmup_steps=1), long, tmp_path)


def test_past_the_end_of_the_schedule_the_rate_stays_low():
    """A cosine rises again; a run may take a step more than was estimated, as with epochs of uneven steps."""
    _, trainer = train(4, steps=5)
    schedule = trainer.lr_scheduler_configs[0].scheduler
    rates = [schedule.lr_lambdas[0](step) for step in range(5, 200)]
    assert rates == pytest.approx([0.1] * len(rates))
    assert len({factor(3) for factor in schedule.lr_lambdas}) == 1 and schedule.lr_lambdas[0](3) > 0.1


def test_a_run_that_broke_off_inside_a_step_leaves_nothing_to_the_next():
    class Break(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 1:
                raise KeyError("broken")

    module = BabyGPT(CONFIG, warmup_steps=1, learning_rate=1e-2)
    fresh = copy.deepcopy(module)
    with pytest.raises(KeyError):
        train(4, accumulate=3, module=module, callbacks=[Break()])
    assert module.inside_a_step
    same_weights(train(4, accumulate=3, module=module)[0].model, train(4, accumulate=3, module=fresh)[0].model)
    assert module.step_loss == fresh.step_loss and not module.inside_a_step
