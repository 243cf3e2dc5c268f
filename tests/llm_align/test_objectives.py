"""Losses and gradients equal to trl's on the same tensors; advantages by hand; and corners."""

from __future__ import annotations

import pytest
import torch
import trl_losses
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_align.objectives.advantages import gae, group_advantages, leave_one_out
from llm_align.objectives.logprobs import answer_mask, over_answers, token_logprobs
from llm_align.objectives.policy import kl_estimate, policy_loss, truncated_weights, value_loss
from llm_align.objectives.preference import bradley_terry, dpo

SEEDS = st.integers(0, 10**6)


def answers(seed: int, rows: int, time: int):
    """Log-probabilities of a policy, of the one that drew, and of a reference; a mask with empty and whole answers."""
    dice = torch.Generator().manual_seed(seed)
    logprobs, old, reference = (-3 * torch.rand(rows, time, generator=dice) for _ in range(3))
    old, reference = logprobs + 0.4 * (old - logprobs), logprobs + 0.4 * (reference - logprobs)
    lengths = torch.randint(0, time + 1, (rows,), generator=dice)
    lengths[0] = time
    return logprobs.requires_grad_(), old, reference, torch.arange(time) < lengths[:, None], dice


def same(ours, theirs, leaf, tolerance=1e-6):
    """Values and gradients; theirs first, so that ours cannot lean on a gradient that is there."""
    (of_theirs,) = torch.autograd.grad(theirs, leaf, retain_graph=True)
    (of_ours,) = torch.autograd.grad(ours, leaf)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=1e-5)
    torch.testing.assert_close(of_ours, of_theirs, atol=tolerance, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    SEEDS, st.integers(1, 6), st.integers(1, 7), st.sampled_from([("grpo", "answer"), ("dapo", "tokens"),
    ("bnpo", "tokens"), ("dr_grpo", "length")]), st.sampled_from(["token", "sequence"]), st.sampled_from([0.0, 0.3]),
    st.booleans(),
)  # fmt: skip
def test_grpo_and_its_kin_are_trls(seed, rows, time, kinds, ratio, beta, weighted):
    logprobs, old, reference, mask, dice = answers(seed, rows, time)
    advantages = torch.randn(rows, generator=dice)
    weights = torch.rand(rows, time, generator=dice) + 0.5 if weighted else None
    theirs = trl_losses.grpo(
        logprobs, old, advantages, mask, loss_type=kinds[0], beta=beta, reference=reference, level=ratio,
        low=0.1, high=0.3, max_length=9, weights=weights,
    )  # fmt: skip
    ours = policy_loss(
        logprobs, old, advantages, mask, normaliser=kinds[1], max_length=9, ratio=ratio, low=0.1, high=0.3, beta=beta,
        reference=reference, weights=weights,
    )  # fmt: skip
    same(ours.loss, theirs, logprobs)
    assert ours.kl >= 0 and 0 <= ours.clipped <= 1


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(1, 7))
def test_rloo_is_trls(seed, rows, time):
    logprobs, old, _, mask, dice = answers(seed, rows, time)
    advantages = torch.randn(rows, generator=dice)
    ours = policy_loss(logprobs, old, advantages, mask, ratio="answer")
    same(ours.loss, trl_losses.rloo(logprobs, old, advantages, mask), logprobs)


@settings(max_examples=40, deadline=None)
@given(
    SEEDS, st.integers(1, 4), st.integers(1, 7), st.sampled_from(["sigmoid", "hinge", "ipo", "robust"]),
    st.sampled_from([0.1, 0.7]),
)  # fmt: skip
def test_dpo_is_trls(seed, pairs, time, kind, beta):
    logprobs, _, reference, mask, _ = answers(seed, 2 * pairs, time)
    smoothing = 0.2 if kind == "robust" else 0.0
    theirs = trl_losses.dpo(logprobs, reference, mask, beta=beta, loss_type=kind, label_smoothing=smoothing)
    sums, of_reference = over_answers(logprobs, mask), over_answers(reference, mask)
    lengths = mask.sum(1).float()
    ours = dpo(
        sums[:pairs], sums[pairs:], of_reference[:pairs], of_reference[pairs:], beta, kind, smoothing,
        (lengths[:pairs], lengths[pairs:]),
    )  # fmt: skip
    same(ours.loss, theirs, logprobs, 2e-6)


def test_the_gradient_of_dpo_by_hand():
    """beta sigmoid(-margin) to each, with opposite signs. Rafailov et al. 2023, below equation 7."""
    chosen, rejected = torch.tensor([-4.0], requires_grad=True), torch.tensor([-5.0], requires_grad=True)
    found = dpo(chosen, rejected, torch.tensor([-4.5]), torch.tensor([-4.0]), beta=0.5)
    found.loss.backward()
    weight = 0.5 * torch.sigmoid(torch.tensor(-0.5 * (0.5 + 1.0)))
    assert float(chosen.grad) == pytest.approx(-float(weight)) == pytest.approx(-float(rejected.grad))
    assert found.chosen_rewards.tolist() == [0.25] and found.rejected_rewards.tolist() == [-0.5]


def test_bradley_terry_knows_differences_only():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    expected = -torch.log(torch.sigmoid(torch.tensor([1.0, -2.0]))).mean()
    torch.testing.assert_close(bradley_terry(chosen, rejected), expected)
    torch.testing.assert_close(bradley_terry(chosen + 7, rejected + 7), expected)
    torch.testing.assert_close(bradley_terry(chosen, rejected, 0.1), expected + 0.1 * (1.0 + 4.0) / 2)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(1, 8), st.sampled_from([0.9, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_gae_is_the_sum_that_defines_it(seed, rows, time, gamma, lam):
    _, _, _, mask, dice = answers(seed, rows, time)
    rewards, values = torch.randn(2, rows, time, generator=dice)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row in range(rows):
        length = int(mask[row].sum())
        for t in range(time):
            expected = 0.0
            for u in range(t, length):
                after = values[row, u + 1] if u + 1 < length else 0.0
                expected += (gamma * lam) ** (u - t) * (rewards[row, u] + gamma * after - values[row, u])
            assert float(advantages[row, t]) == pytest.approx(float(expected), abs=1e-4)
    torch.testing.assert_close(returns, (advantages + values) * mask)


def test_groups_and_baselines_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0])
    assert group_advantages(rewards, 4, "none").tolist() == [0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0]
    scaled = group_advantages(rewards, 4)
    assert scaled[0] == pytest.approx(0.5 / (3**-0.5 + 1e-4), rel=1e-4) and scaled[4:].tolist() == [0, 0, 0, 0]
    assert group_advantages(rewards, 4, "batch")[0] == pytest.approx(0.5 / (float(rewards.std()) + 1e-4))
    # The mean of the others; 4 / 3 of the centred reward.
    torch.testing.assert_close(leave_one_out(rewards, 4), 4 / 3 * group_advantages(rewards, 4, "none"))
    for wrong, group, message in (
        ([1.0, 2.0, 3.0], 2, "3 rewards are no groups of 2"), ([1.0], 1, "at least 2"),
        ([], 2, "0 rewards"), ([1.0, float("nan")], 2, "not finite"),
    ):  # fmt: skip
        for function in (group_advantages, leave_one_out):
            with pytest.raises(ValueError, match=message):
                function(torch.tensor(wrong), group)
    with pytest.raises(ValueError, match="scale='mean'"):
        group_advantages(rewards, 4, "mean")


def test_equal_rewards_give_no_gradient_and_no_nan():
    logprobs, old, _, mask, _ = answers(0, 4, 5)
    advantages = group_advantages(torch.ones(4), 4)
    (grad,) = torch.autograd.grad(policy_loss(logprobs, old, advantages, mask).loss, logprobs)
    assert torch.equal(grad, torch.zeros_like(grad))
    empty = torch.zeros_like(mask)
    for normaliser in ("answer", "tokens", "length"):
        loss = policy_loss(logprobs, old, torch.ones(4), empty, normaliser=normaliser, max_length=5).loss
        assert float(loss) == 0


def test_length_counts_by_normaliser():
    """Gradient of a token in a short and in a long answer of equal advantage: 1 / length, one for all, one for all."""
    logprobs = torch.zeros(2, 8, requires_grad=True)
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    weights = {}
    for normaliser in ("answer", "tokens", "length"):
        loss = policy_loss(logprobs, logprobs.detach(), torch.ones(2), mask, normaliser=normaliser, max_length=8).loss
        (grad,) = torch.autograd.grad(loss, logprobs)
        weights[normaliser] = [(-grad[0, 0]).item(), (-grad[1, 0]).item()]
    expected = {"answer": [1 / 4, 1 / 16], "tokens": [1 / 10, 1 / 10], "length": [1 / 16, 1 / 16]}
    assert {name: pytest.approx(pair) for name, pair in weights.items()} == expected


def test_the_loss_is_zero_and_its_gradient_is_not():
    """What users ask about: centred advantages and a ratio of 1 add up to 0."""
    logprobs = torch.randn(4, 3).requires_grad_()
    mask = torch.ones(4, 3, dtype=torch.bool)
    advantages = group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), 4)
    loss = policy_loss(logprobs, logprobs.detach(), advantages, mask).loss
    (grad,) = torch.autograd.grad(loss, logprobs)
    assert float(loss) == pytest.approx(0, abs=1e-7) and float(grad.abs().min()) > 0.05


def test_clipping_stops_the_gradient_on_the_far_side_only():
    old, mask = torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool)
    logprobs = torch.tensor([[0.5, 0.5, -0.5, -0.5]], requires_grad=True)  # ratios of 1.65 and 0.61
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    found = policy_loss(logprobs, old, advantages, mask, normaliser="tokens")
    (grad,) = torch.autograd.grad(found.loss, logprobs)
    assert [value != 0 for value in grad[0].tolist()] == [False, True, True, False] and found.clipped == 0.5


def test_logprobs_and_masks():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(7, (2, 5))
    expected = logits.log_softmax(-1)
    found = token_logprobs(logits, ids)
    for row in range(2):
        for place in range(4):
            assert float(found[row, place]) == pytest.approx(float(expected[row, place, ids[row, place + 1]]), abs=1e-6)
    mask = answer_mask(torch.tensor([2, 4]), torch.tensor([4, 4]), 5)
    assert mask.tolist() == [[False, True, True, False], [False] * 4]  # tokens 2 and 3 of the first, none of the other
    assert over_answers(torch.tensor([[1.0, float("nan")]]), torch.tensor([[True, False]])).tolist() == [1.0]
    assert token_logprobs(logits.bfloat16(), ids).dtype == torch.float32
    for prompt, length in ((0, 3), (3, 2), (2, 6)):
        with pytest.raises(ValueError, match="at least 1 token, and at most 5"):
            answer_mask(torch.tensor([prompt]), torch.tensor([length]), 5)


def test_kl_values_and_weights():
    logprobs, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -1.0]])
    torch.testing.assert_close(kl_estimate(logprobs, reference), torch.tensor([[0.0, torch.e - 2]]))
    assert truncated_weights(torch.tensor([[0.0, 2.0]]), torch.tensor([[-0.1, 0.0]]), 2.0).tolist()[0] == [
        pytest.approx(1.10517, abs=1e-4), 2.0
    ]  # fmt: skip
    values, old, returns = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    # The first moved by more than 0.2: it is judged where it stood less 0.8.
    assert float(value_loss(values, old, returns, mask)) == pytest.approx(0.5 * (0.8**2 + 9) / 2)
    assert float(value_loss(values, old, returns, mask, clip=None)) == pytest.approx(0.5 * 9 / 2)


def test_what_cannot_be():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for arguments, message in (
        ({"normaliser": "mean"}, "normaliser='mean'"), ({"ratio": "batch"}, "ratio='batch'"),
        ({"normaliser": "length"}, "needs max_length"), ({"beta": 0.1}, "needs the reference"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            policy_loss(x, x, torch.ones(2), mask, **arguments)
    with pytest.raises(ValueError, match="an advantage an answer"):
        policy_loss(x, x, torch.ones(2, 3), mask, ratio="answer")
    one = torch.ones(1)
    for arguments, message in (
        ({"beta": 0}, "beta=0 must be above 0"), ({"kind": "slic"}, "kind='slic' is none of"),
        ({"label_smoothing": 0.1}, "label_smoothing is of"), ({"kind": "ipo"}, "needs the lengths"),
        ({"kind": "robust", "label_smoothing": 0.5}, "below 0.5"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            dpo(one, one, one, one, **arguments)
    with pytest.raises(ValueError, match="most=0"):
        truncated_weights(x, x, 0)


def test_ppo_is_torchrls():
    """GAE without a difference; the clipped losses of policy and value and their gradients within rounding."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensordict import TensorDict
        from tensordict.nn import TensorDictModule
        from torchrl.modules import ProbabilisticActor, ValueOperator
        from torchrl.objectives import ClipPPOLoss
        from torchrl.objectives.value.functional import generalized_advantage_estimate
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 4, 10)
    done = torch.zeros(4, 10, 1, dtype=torch.bool)
    done[:, -1] = True
    after = torch.cat([values[:, 1:], torch.zeros(4, 1)], dim=1)
    theirs = generalized_advantage_estimate(
        0.9, 0.8, values[..., None], after[..., None], rewards[..., None], done, done
    )
    whole = torch.ones(4, 10, dtype=torch.bool)
    ours = gae(rewards, values, whole, 0.9, 0.8)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other[..., 0])

    net, head = torch.nn.Linear(5, 7), torch.nn.Linear(5, 1)
    x, actions, old = torch.randn(40, 5), torch.randint(7, (40,)), 0.3 * torch.randn(40) - 1.9
    actor = ProbabilisticActor(
        TensorDictModule(net, ["observation"], ["logits"]), in_keys=["logits"],
        distribution_class=torch.distributions.Categorical, return_log_prob=True,
    )  # fmt: skip
    loss = ClipPPOLoss(
        actor, ValueOperator(head, in_keys=["observation"]), clip_epsilon=0.2, entropy_bonus=False,
        normalize_advantage=False, loss_critic_type="l2", critic_coeff=0.5, clip_value=0.2,
    )  # fmt: skip
    advantages, returns = ours[0].flatten(), ours[1].flatten()
    out = loss(
        TensorDict(
            {
                "observation": x, "action": actions, "action_log_prob": old, "advantage": advantages[:, None],
                "value_target": returns[:, None], "state_value": values.reshape(40, 1),
            },
            [40],
        )
    )  # fmt: skip
    wanted = out["loss_objective"] + out["loss_critic"]
    wanted.backward()
    gradients = [each.grad.clone() for each in (*net.parameters(), *head.parameters())]
    net.zero_grad(), head.zero_grad()
    logprobs = net(x).log_softmax(-1).gather(-1, actions[:, None]).view(4, 10)
    policy = policy_loss(logprobs, old.view(4, 10), ours[0], whole, normaliser="tokens")
    found = policy.loss + value_loss(head(x).view(4, 10), values, ours[1], whole, 0.2)
    found.backward()
    assert 0.1 < policy.clipped < 0.9
    torch.testing.assert_close(found, wanted.squeeze(), rtol=0, atol=1e-6)
    for grad, each in zip(gradients, (*net.parameters(), *head.parameters()), strict=True):
        torch.testing.assert_close(each.grad, grad, rtol=0, atol=1e-6)
