"""A sparse layer is transformers': outputs, gradients, losses of balance; and its three forms are one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_core.config import GPTConfig
from llm_moe.balance import balance_loss, bias_step, concatenated_balance_loss, load, z_loss
from llm_moe.capacity import capacity, expected_dropped, within
from llm_moe.config import FORMS, SparseConfig
from llm_moe.experts import batched, grouped, looped
from llm_moe.layer import SparseMLP
from llm_moe.router import counts, route
from transformers import MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

C, F, E, K = 24, 40, 8, 2


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for values in module.parameters():
        torch.nn.init.normal_(values, std=0.3)
    return module


def theirs(kind: str, implementation: str) -> torch.nn.Module:
    if kind == "mixtral":
        config = MixtralConfig(hidden_size=C, intermediate_size=F, num_local_experts=E, num_experts_per_tok=K)
        block = MixtralSparseMoeBlock
    else:
        config = Qwen3MoeConfig(hidden_size=C, moe_intermediate_size=F, num_experts=E, num_experts_per_tok=K,
                                norm_topk_prob=False)  # fmt: skip
        block = Qwen3MoeSparseMoeBlock
    config._experts_implementation = implementation
    return drawn(block(config))


def ours(form: str = "grouped", **changes) -> SparseMLP:
    sparse = SparseConfig(**{"num_experts": E, "num_experts_per_tok": K, "form": form, **changes})
    return drawn(SparseMLP(GPTConfig(10, hidden_size=C, intermediate_size=F), sparse))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3"])
def test_outputs_and_gradients_are_transformers(kind, implementation, form):
    block, layer = theirs(kind, implementation), ours(form, norm_topk_prob=kind == "mixtral")
    layer.load_state_dict(block.state_dict())
    x = torch.randn(3, 13, C)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = layer(inputs[0]), block(inputs[1])
    torch.testing.assert_close(*outputs, rtol=0, atol=2e-6)
    grad = torch.randn_like(x)
    for each in outputs:
        each.backward(grad)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-5)
    for name, other in block.named_parameters():
        torch.testing.assert_close(layer.get_parameter(name).grad, other.grad, rtol=1e-5, atol=2e-5, msg=name)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 17), st.integers(1, 6), st.data())
def test_the_three_forms_are_one(seed, tokens, experts, data):
    """Also where experts have no token, or all, and where choices are not served."""
    k = data.draw(st.integers(1, experts))
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 8, generator=dice)
    logits = torch.randn(tokens, experts, generator=dice) * data.draw(st.sampled_from([0.1, 30.0]))
    routing = route(logits, k)
    weights = routing.weights * (torch.rand(tokens, k, generator=dice) < 0.7)
    gate_up, down = torch.randn(experts, 16, 8, generator=dice), torch.randn(experts, 8, 8, generator=dice)
    found = []
    for form in (looped, batched, grouped):
        leaves = [each.clone().requires_grad_() for each in (x, weights, gate_up, down)]
        out = form(leaves[0], routing.experts, leaves[1], *leaves[2:])
        found.append((out, *torch.autograd.grad((out * x).sum(), leaves)))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    one, first = torch.ones(1, 1), routing.experts[:1]
    alone = sum(weights[0, n] * looped(x[:1], first[:, n : n + 1], one, gate_up, down) for n in range(k))
    torch.testing.assert_close(found[0][0][:1], alone, rtol=1e-4, atol=1e-4)


def test_a_bias_chooses_and_does_not_weigh():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    plain, moved = route(logits, 1, norm_topk_prob=False), route(logits, 1, False, torch.tensor([0.0, 9.0, 0.0]))
    assert plain.experts.tolist() == [[0]] and moved.experts.tolist() == [[1]]
    torch.testing.assert_close(moved.weights, logits.softmax(-1)[:, 1:2])
    torch.testing.assert_close(route(logits, 2).weights.sum(), torch.tensor(1.0))


# -- balance ----------------------------------------------------------------------------------------------------------


def test_the_loss_of_balance_is_transformers():
    torch.manual_seed(0)
    logits = tuple(torch.randn(30, E) for _ in range(3))
    mask = (torch.rand(3, 10) < 0.6).long()
    for given_mask in (None, mask):
        wanted = load_balancing_loss_func(logits, E, K, given_mask)
        found = concatenated_balance_loss([route(each, K) for each in logits], given_mask)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            balance_loss(route(logits[0], K), given_mask), load_balancing_loss_func(logits[:1], E, K, given_mask)
        )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_in_balance_the_loss_is_k(k):
    """Each token likes others best, so that all experts are sent alike, with alike probabilities."""
    logits = torch.stack([torch.eye(6).roll(shift, dims=1) * (3 - shift) for shift in range(3)]).sum(0)
    assert float(balance_loss(route(logits, k))) == pytest.approx(k, abs=1e-5)
    torch.testing.assert_close(load(route(logits, k)), torch.ones(6))


def test_layers_that_collapsed_on_opposite_halves_look_balanced_together():
    """The figure of the first lesson: 2.0 on the concatenation, 4.0 in each layer."""
    halves = [torch.tensor([5.0] * 2 + [-30.0] * 6), torch.tensor([-30.0] * 6 + [5.0] * 2)]
    one = [route(half.expand(40, 8).clone(), 2) for half in halves]
    assert float(balance_loss(one[0])) == pytest.approx(8.0, rel=1e-5)
    assert float(concatenated_balance_loss(one)) == pytest.approx(4.0, rel=1e-5)
    halved = [torch.tensor([5.0, 5.0, -30.0, -30.0]), torch.tensor([-30.0, -30.0, 5.0, 5.0])]
    two = [route(half.expand(40, 4).clone(), 2) for half in halved]
    assert [float(balance_loss(each)) for each in two] == pytest.approx([4.0, 4.0], rel=1e-5)
    assert float(concatenated_balance_loss(two)) == pytest.approx(2.0, rel=1e-5)


def test_the_gradient_pushes_the_probability_of_the_fullest_down():
    logits = torch.tensor([[3.0, 0.0, 0.0, 0.0]]).expand(10, 4).clone().requires_grad_()
    (grad,) = torch.autograd.grad(balance_loss(route(logits, 1)), logits)
    assert bool((grad[:, 0] > 0).all()) and bool((grad[:, 1:] < 0).all())


def test_the_z_loss_and_the_step_of_the_bias():
    logits = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    wanted = torch.tensor([0.693147, 1.693147]).pow(2).mean()
    assert float(z_loss(logits)) == pytest.approx(float(wanted), abs=1e-5)
    moved = bias_step(torch.zeros(3), torch.tensor([5, 2, 2]), 0.01)
    torch.testing.assert_close(moved, torch.tensor([-0.01, 0.01, 0.01]))


def test_the_bias_balances_without_a_loss():
    layer = ours(balance="bias", bias_step=0.005, num_experts_per_tok=1)
    with torch.no_grad():
        layer.gate.weight.mul_(0.2)
        layer.gate.weight[0] += 0.1
    x = torch.randn(4, 64, C) + 0.4
    layer(x)
    before = float(load(layer.routing).max())
    for _ in range(150):
        layer(x)
        layer.move_bias()
    assert before > 2.5 and float(load(layer.routing).max()) < 1.4
    assert "bias" in layer.state_dict() and "bias" not in ours().state_dict()
    with pytest.raises(RuntimeError, match="no token was routed yet"):
        ours(balance="bias").move_bias()


# -- capacity ---------------------------------------------------------------------------------------------------------


def test_first_choices_go_before_second_ones():
    experts = torch.tensor([[0, 1], [0, 2], [1, 0], [0, 1]])
    served = within(experts, 3, 2)
    assert served.tolist() == [[True, True], [True, True], [True, False], [False, False]]
    assert capacity(10, 4, 2, 1.0) == 5 and capacity(10, 4, 2, 1.25) == 7


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6), st.integers(0, 12))
def test_nobody_serves_more_than_its_capacity_or_less_than_it_could(seed, tokens, experts, most):
    dice = torch.Generator().manual_seed(seed)
    k = min(2, experts)
    chosen = torch.rand(tokens, experts, generator=dice).topk(k).indices
    served = within(chosen, experts, most)
    for number in range(experts):
        assert int((served & (chosen == number)).sum()) == min(most, int((chosen == number).sum()))


@pytest.mark.parametrize(("tokens", "experts", "factor"), [(64, 8, 1.0), (64, 8, 1.5), (200, 4, 1.0), (10, 1, 1.0)])
def test_dropped_tokens_are_those_of_the_multinomial(tokens, experts, factor):
    dice = torch.Generator().manual_seed(0)
    most, rounds = capacity(tokens, experts, 1, factor), 400
    shares = []
    for _ in range(rounds):
        chosen = torch.randint(experts, (tokens, 1), generator=dice)
        shares.append(float((~within(chosen, experts, most)).float().mean()))
    mean, error = torch.tensor(shares).mean(), torch.tensor(shares).std() / rounds**0.5
    assert float(mean) == pytest.approx(expected_dropped(tokens, experts, factor), abs=4 * float(error) + 1e-9)


def test_a_dropped_choice_adds_nothing():
    layer = ours(capacity_factor=0.5)
    x = torch.randn(2, 16, C)
    out = layer(x)
    served = within(layer.routing.experts, E, capacity(32, E, K, 0.5))
    assert layer.dropped == pytest.approx(float((~served).float().mean())) and layer.dropped > 0.4
    nowhere = ~served.any(dim=1)
    assert bool(nowhere.any()) and not out.flatten(0, 1)[nowhere].any()
    whole = ours()(x)
    everywhere = served.all(dim=1)
    torch.testing.assert_close(out.flatten(0, 1)[everywhere], whole.flatten(0, 1)[everywhere], rtol=0, atol=1e-5)


def test_a_shared_expert_is_added():
    layer, x = ours(shared_intermediate_size=16), torch.randn(2, 5, C)
    plain = ours()
    plain.load_state_dict({name: each for name, each in layer.state_dict().items() if "shared" not in name})
    torch.testing.assert_close(layer(x), plain(x) + layer.shared_expert(x))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": 0}, "num_experts=0"), ({"num_experts_per_tok": 9}, "num_experts_per_tok=9 of num_experts=8"),
        ({"capacity_factor": 0}, "capacity_factor=0"), ({"form": "loops"}, "none of loop, batched, grouped"),
        ({"balance": "luck"}, "none of none, loss, bias"), ({"router_aux_loss_coef": -1}, "must be 0 or more"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        SparseConfig(**changes)


def test_counts():
    assert counts(torch.tensor([[0, 3], [3, 1]]), 5).tolist() == [1, 1, 0, 2, 0]
