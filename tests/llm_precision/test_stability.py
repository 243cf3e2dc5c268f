"""Loss scaling, accumulation, clipping, schedules, noise, the guard: each against what it mirrors or a known case."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from llm_core.config import GPTConfig
from llm_core.losses import causal_loss
from llm_core.model import GPT
from llm_precision.stability import schedules
from llm_precision.stability.batches import accumulate, clip_by_global_norm, mean_of_means
from llm_precision.stability.guard import NotFinite, broken_gradients, finite
from llm_precision.stability.noise import noise_scale, range_test
from llm_precision.stability.scaler import LossScaler
from transformers.optimization import (
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

# -- loss scaling ------------------------------------------------------------------------------------------------------


def scaled_run(ours: bool, steps: int = 60):
    """A weight under a loss whose gradient overflows at some steps; the factor and whether the step was taken, each."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.01)
    options = (2.0**10, 2.0, 0.5, 5)
    scaler = LossScaler(*options) if ours else torch.amp.GradScaler("cpu", *options)
    told = []
    for step in range(steps):
        optimizer.zero_grad()
        # In float32 the scaled gradient passes 3.4e38 where the loss is steep.
        steep = 1e36 if step in (7, 21, 30, 31, 32) else 1.0
        scaler.scale((weight * steep).sum()).backward()
        before = weight.detach().clone()
        if step % 2:
            scaler.unscale([weight]) if ours else scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        told.append((scaler.factor if ours else scaler.get_scale(), not torch.equal(weight, before)))
    return told, weight.detach()


def test_every_decision_is_grad_scalers():
    ours, weight = scaled_run(ours=True)
    theirs, their_weight = scaled_run(ours=False)
    assert ours == theirs and torch.equal(weight, their_weight)
    assert [taken for _, taken in ours].count(False) >= 5 and len({factor for factor, _ in ours}) > 4


def test_a_scaler_counts_and_refuses_to_divide_twice():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), LossScaler(8.0)
    scaler.scale(weight.sum()).backward()
    assert scaler.unscale([weight]) and torch.equal(weight.grad, torch.ones(2))
    with pytest.raises(RuntimeError, match="unscale was called already"):
        scaler.unscale([weight])
    assert scaler.step(optimizer) and (scaler.steps_taken, scaler.steps_left_out) == (1, 0)
    with pytest.raises(ValueError, match=r"backoff=1\.5 between 0 and 1"):
        LossScaler(backoff=1.5)


# -- accumulation and clipping -----------------------------------------------------------------------------------------


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(30, 16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2))


def uneven_batches():
    torch.manual_seed(1)
    ids = torch.randint(30, (4, 2, 10))
    labels = ids.clone()
    for number, kept in enumerate((9, 5, 2, 7)):
        labels[number, :, kept:] = -100
    return [{"input_ids": each, "labels": target} for each, target in zip(ids, labels, strict=True)]


def losses_of(model):
    return lambda batch: causal_loss(model(batch["input_ids"]).logits, batch["labels"])


def gradients(model):
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def test_accumulated_gradients_are_the_large_batchs_and_a_mean_of_means_is_not(model):
    batches = uneven_batches()
    large = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    whole, small, wrong = (copy.deepcopy(model) for _ in range(3))
    total, targets = losses_of(whole)(large)
    (total / targets).backward()
    loss = accumulate(losses_of(small), batches, small.parameters())
    torch.testing.assert_close(loss, (total / targets).detach())
    torch.testing.assert_close(gradients(small), gradients(whole), rtol=1e-4, atol=1e-7)
    mistaken = mean_of_means(losses_of(wrong), batches)
    assert abs(mistaken - loss) > 1e-3
    assert (gradients(wrong) - gradients(whole)).norm() > 0.05 * gradients(whole).norm()
    even = [dict(batch, labels=batch["input_ids"]) for batch in batches]
    right, also = copy.deepcopy(model), copy.deepcopy(model)
    torch.testing.assert_close(
        mean_of_means(losses_of(right), even), accumulate(losses_of(also), even, also.parameters())
    )
    torch.testing.assert_close(gradients(right), gradients(also), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e6])
def test_clipping_is_torchs(model, limit):
    other = copy.deepcopy(model)
    for each in (model, other):
        accumulate(losses_of(each), uneven_batches(), each.parameters())
    norm = clip_by_global_norm(model.parameters(), limit)
    theirs = torch.nn.utils.clip_grad_norm_(other.parameters(), limit)
    torch.testing.assert_close(norm, theirs)
    torch.testing.assert_close(gradients(model), gradients(other))
    assert gradients(model).norm() <= limit * 1.0001


def test_a_step_without_targets_is_refused(model):
    batch = dict(uneven_batches()[0])
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.raises(ValueError, match="no batch has a target"):
        accumulate(losses_of(model), [batch], model.parameters())


def test_clipping_refuses_what_cannot_be(model):
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        clip_by_global_norm(model.parameters(), 1.0)
    with pytest.raises(ValueError, match="limit=0 must be above 0"):
        clip_by_global_norm(model.parameters(), 0)


# -- schedules ---------------------------------------------------------------------------------------------------------


def theirs(make, steps, **options):
    """A schedule of transformers, at steps 1, 2, ... of its counting."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = make(optimizer, **options)
    rates = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


def test_schedules_are_those_of_transformers():
    warmup, steps, fall = 10, 50, 15
    wanted = theirs(get_linear_schedule_with_warmup, steps, num_warmup_steps=warmup, num_training_steps=steps)
    assert [schedules.linear(step, warmup, steps) for step in range(steps)] == pytest.approx(wanted)
    for shape, kind in (("linear", "linear"), ("cosine", "cosine"), ("sqrt", "1-sqrt")):
        wanted = theirs(get_wsd_schedule, steps, num_warmup_steps=warmup, num_decay_steps=fall,
                        num_training_steps=steps, min_lr_ratio=0.1, decay_type=kind, warmup_type="linear")  # fmt: skip
        ours = [schedules.warmup_stable_decay(step, warmup, fall, steps, 0.1, shape) for step in range(steps)]
        # Its warm-up begins at min_lr_ratio, ours at 0.
        assert ours[warmup:] == pytest.approx(wanted[warmup:])
    wanted = theirs(get_inverse_sqrt_schedule, steps, num_warmup_steps=warmup)
    assert [schedules.inverse_square_root(step, warmup) for step in range(steps)] == pytest.approx(wanted)


def test_schedules_are_those_of_torch():
    warmup, steps = 8, 40
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    up = torch.optim.lr_scheduler.LinearLR(sgd, 1 / warmup, 1.0, warmup - 1)
    down = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps - warmup, eta_min=0.1)
    both = torch.optim.lr_scheduler.SequentialLR(sgd, [up, down], [warmup - 1])
    rates = []
    for _ in range(steps):
        rates.append(both.get_last_lr()[0])
        sgd.step()
        both.step()
    assert [schedules.cosine(step, warmup, steps, 0.1) for step in range(steps)] == pytest.approx(rates)


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedules_begin_above_zero_rise_to_one_and_stay_after_the_end(warmup):
    steps = 40
    for schedule in (
        lambda step: schedules.linear(step, warmup, steps, 0.2),
        lambda step: schedules.cosine(step, warmup, steps, 0.2),
        lambda step: schedules.warmup_stable_decay(step, warmup, 20, steps, 0.2),
    ):
        rates = [schedule(step) for step in range(60)]
        assert rates[0] > 0 and max(rates) <= 1.0
        if warmup:
            assert rates[warmup - 1] == 1.0
        assert rates[steps - 1] == pytest.approx(0.2) and set(rates[steps:]) == {rates[steps - 1]}


def test_the_stable_part_does_not_know_the_end():
    first = [schedules.warmup_stable_decay(step, 5, 10, 50) for step in range(40)]
    assert first == [schedules.warmup_stable_decay(step, 5, 10, 500) for step in range(40)]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: schedules.linear(0, 10, 10), "warmup_steps=10 from 0 to below 10 steps"),
        (lambda: schedules.linear(-1, 1, 10), "step=-1"),
        (lambda: schedules.warmup_stable_decay(0, 5, 6, 10), "decay_steps=6 must be above 0 and leave room"),
        (lambda: schedules.warmup_stable_decay(0, 5, 2, 10, shape="step"), "shape='step' is none of linear"),
        (lambda: schedules.inverse_square_root(0, 0), "warmup_steps=0 1 or more"),
    ],
)
def test_schedules_refuse_what_cannot_be(call, told):
    with pytest.raises(ValueError, match=told):
        call()


# -- noise -------------------------------------------------------------------------------------------------------------


def test_the_noise_scale_of_a_known_distribution():
    """Gradients drawn around a known mean with a known variance: |G|² = 4, tr(Sigma) = 50 x 0.5² = 12.5."""
    draw = torch.Generator().manual_seed(0)
    mean = torch.zeros(50)
    mean[0] = 2.0

    def norms(batch: int) -> list[float]:
        batches = mean + 0.5 * torch.randn(4000, batch, 50, generator=draw).mean(dim=1)
        return batches.square().sum(dim=1).tolist()

    found = noise_scale(norms(2), norms(32), 2, 32)
    assert found.signal == pytest.approx(4.0, rel=0.02) and found.noise == pytest.approx(12.5, rel=0.05)
    assert found.batch == pytest.approx(12.5 / 4, rel=0.06)
    with pytest.raises(ValueError, match="small_batch=8 must be above 0 and below large_batch=8"):
        noise_scale([1.0], [1.0], 8, 8)
    assert noise_scale([4.0], [1.0], 1, 2).batch == math.inf


def test_a_range_test_finds_where_a_bowl_diverges():
    """Gradient descent on c w² / 2 is stable below a rate of 2 / c."""
    state = {"w": 1.0}

    def step(rate: float) -> float:
        loss = 0.5 * 4.0 * state["w"] ** 2
        state["w"] -= rate * 4.0 * state["w"]
        return loss

    found = range_test(step, 1e-3, 10.0, 200)
    assert found.diverged is not None and 0.5 < found.diverged < 0.75
    assert len(found.rates) == len(found.losses) < 200 and found.losses[-1] < found.losses[0]
    assert range_test(lambda rate: 1.0, 1e-3, 1e-2, 5).diverged is None
    with pytest.raises(ValueError, match=r"low=1 must be above 0 and below high=0\.5"):
        range_test(step, 1, 0.5)


# -- the guard ---------------------------------------------------------------------------------------------------------


def test_the_first_module_that_breaks_is_named(model):
    ids = torch.randint(30, (1, 6))
    with finite(model):
        model(ids)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    told = r"layers\.0\.mlp\.up_proj \(Linear\).*its own weight is broken"
    with pytest.raises(NotFinite, match=told), finite(broken):
        broken(ids)
    broken(ids)  # outside, nothing watches
    loud = copy.deepcopy(model)
    with torch.no_grad():
        loud.model.layers[0].mlp.gate_proj.weight.mul_(1e30)
        loud.model.layers[0].mlp.up_proj.weight.mul_(1e30)
    with pytest.raises(NotFinite, match=r"layers\.0\.mlp.* not finite; inputs up to \d"), finite(loud):
        loud(ids)


def test_broken_gradients_are_listed_from_the_output_back(model):
    model(torch.randint(30, (1, 6))).logits.sum().backward()
    assert broken_gradients(model) == []
    model.model.norm.weight.grad[0] = math.inf
    model.model.layers[0].mlp.up_proj.weight.grad[0, 0] = math.nan
    assert broken_gradients(model) == ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"]
