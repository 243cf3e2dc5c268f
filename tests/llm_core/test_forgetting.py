"""Fine-tuning measured on two domains: what is measured, in which mode, on which rows, and in which batches."""

import copy
import math

import numpy as np
import pytest
import torch
from llm_core.babygpt import BabyGPT
from llm_core.forgetting import Replay, batches, bits, fine_tune, held_out
from llm_core.model import GPT, GPTConfig
from llm_core.optimizers import parameter_groups
from llm_data.datamodule import LLMDataModule
from llm_data.rows.collate import make_batch
from loss_callbacks import own_text
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from course.lightning_tools import quiet

quiet()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    made = LLMDataModule(
        f"text:{own_text(folder)}", "char", context=16, batch_size=4, val_percent=30, cache=folder / "cache",
        progress=False,
    )  # fmt: skip
    made.prepare_data()
    made.setup()
    return made


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    return GPT(GPTConfig(data.vocab_size, hidden_size=32, num_hidden_layers=2, max_position_embeddings=16)).eval()


@pytest.fixture(scope="module")
def drawing(data):
    """A model with dropout."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=data.vocab_size, n_embd=32, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.5)
    return GPT2LMHeadModel(config)


def weights(model):
    return {name: values.clone() for name, values in model.state_dict().items()}


def test_held_out_rows_are_spread_from_the_first_to_the_last(data):
    table = data.rows("val")
    text = held_out(data, rows=5)
    last = len(table) - 1
    expected = make_batch(table, np.array([0, last // 4, last // 2, 3 * last // 4, last]))
    assert all(torch.equal(text.batch[name], expected[name]) for name in expected)
    manifest = data.tokens("val").manifest
    assert text.bytes_per_token == manifest.text_bytes / manifest.tokens


@pytest.mark.parametrize("rows", [0, 10_000])
def test_no_rows_and_too_many_are_refused(data, rows):
    with pytest.raises(ValueError, match=rf"rows={rows}: .* has {len(data.rows('val'))} validation rows"):
        held_out(data, rows)


def test_bits_are_the_mean_loss_over_targets_in_bits_per_byte(data, model):
    text = held_out(data, 6)
    inputs = {name: text.batch[name] for name in ("input_ids", "position_ids")}
    losses = F.cross_entropy(
        model(**inputs).logits[:, :-1].flatten(0, 1), text.batch["labels"][:, 1:].flatten(), reduction="none"
    )
    targets = int((text.batch["labels"][:, 1:] != -100).sum())
    expected = losses.sum().item() / targets / math.log(2) / text.bytes_per_token
    assert bits(model, text) == pytest.approx(expected, rel=1e-5)
    assert bits(BabyGPT(copy.deepcopy(model)), text) == pytest.approx(expected, rel=1e-5)


def test_bits_know_no_dropout_and_leave_each_part_in_its_mode(data, drawing):
    text = held_out(data, 6)
    drawing.train()
    drawing.transformer.h[0].eval()  # as one freezes a part
    modes = [part.training for part in drawing.modules()]
    first = bits(BabyGPT(copy.deepcopy(drawing)), text)
    module = BabyGPT(drawing)
    drawing.transformer.h[0].eval()
    assert bits(module, text) == bits(module, text) == first
    assert [part.training for part in drawing.modules()] == modes
    assert not any(part.training for part in drawing.eval().modules())


def test_a_model_in_evaluation_mode_is_there_after_bits(data, model):
    model.eval()
    bits(model, held_out(data, 2))
    assert not any(part.training for part in model.modules())


def test_fine_tune_trains_a_copy_and_measures_where_it_is_asked(data, model):
    texts = {"one": held_out(data, 4), "other": held_out(data, 7)}
    before = weights(model)
    tuned, points = fine_tune(model, batches(data, 4, seed=0), texts, 6, 1e-2, measure_at=(0, 2, 6))
    assert [point["step"] for point in points] == [0, 2, 6]
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())
    for name, text in texts.items():
        assert points[0][name] == pytest.approx(bits(model, text), rel=1e-6)
        assert points[-1][name] == pytest.approx(bits(tuned, text), rel=1e-6)
        assert points[-1][name] < points[0][name]
    assert not any(part.training for part in tuned.modules())


def test_by_default_the_start_and_the_end_are_measured(data, model):
    _, points = fine_tune(model, batches(data, 4, seed=0), {"text": held_out(data, 4)}, steps=3)
    assert [point["step"] for point in points] == [0, 3]


def test_measuring_does_not_change_the_run_and_dropout_is_on_in_it(data, drawing):
    text = {"text": held_out(data, 4)}
    runs = {
        name: weights(fine_tune(drawing, batches(data, 4, seed=0), text, 4, 1e-2, measure_at=at, seed=seed)[0])
        for name, at, seed in (("never", (), 0), ("often", range(5), 0), ("other draws", (), 1))
    }
    assert all(torch.equal(runs["never"][name], values) for name, values in runs["often"].items())
    assert not all(torch.equal(runs["never"][name], values) for name, values in runs["other draws"].items())


def test_a_step_is_adamw_on_the_clipped_mean_and_a_list_of_batches_will_do(data, model):
    batch = next(iter(batches(data, 4, seed=0)))
    tuned, _ = fine_tune(model, [batch], {}, steps=1, learning_rate=1e-2)
    hand = copy.deepcopy(model).train()
    # One step without warm-up: the cosine ends in it, at a tenth of the rate.
    optimizer = torch.optim.AdamW(parameter_groups(hand, 0.1), lr=1e-3, betas=(0.9, 0.95))
    hand(**batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(hand.parameters(), 1.0)
    optimizer.step()
    for ours, theirs in zip(tuned.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_batches_end_and_are_taken_again(data, model):
    few = list(batches(data, 4, seed=0))[:2]
    _, points = fine_tune(model, few, {}, steps=5, measure_at=(5,))
    assert [point["step"] for point in points] == [5]


def test_replay_puts_old_rows_behind_new_ones(data):
    plain = [batch["input_ids"] for batch in batches(data, 3, seed=4)]
    old = [batch["input_ids"] for batch in batches(data, 1, seed=4)]
    mixed = list(batches(data, 4, 4, replay=data, old_rows=1))
    assert len(mixed) == min(len(plain), len(old))
    for batch, new_rows, old_rows in list(zip(mixed, plain, old, strict=False))[:-1]:
        assert torch.equal(batch["input_ids"][:3], new_rows)
        assert torch.equal(batch["input_ids"][3:], old_rows)
        assert batch["labels"].shape == batch["position_ids"].shape == batch["input_ids"].shape


def test_replay_ends_with_the_shorter(data):
    new, old = list(batches(data, 2, seed=0)), list(batches(data, 2, seed=1))[:3]
    assert len(list(Replay(new, old))) == len(list(Replay(old, new))) == 3


def test_the_seed_is_the_order(data):
    orders = [next(iter(batches(data, 4, seed=seed)))["input_ids"] for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize(
    ("old_rows", "source", "message"),
    [(4, True, "at least one row must be new"), (-1, True, "at least one row"), (1, False, "both or none"),
     (0, True, "both or none")],
)  # fmt: skip
def test_impossible_mixtures_are_refused(data, old_rows, source, message):
    with pytest.raises(ValueError, match=f"old_rows={old_rows}.*{message}"):
        batches(data, 4, 0, data if source else None, old_rows)


def test_no_warning_about_validation(data, model, recwarn):
    fine_tune(model, batches(data, 4, seed=0), {}, steps=1)
    assert not [str(warning.message) for warning in recwarn if "val_dataloader" in str(warning.message)]
