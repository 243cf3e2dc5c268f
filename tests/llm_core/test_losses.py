"""Losses against torch, and against their own definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llm_core.costs.memory import saved_bytes
from llm_core.losses import (
    causal_loss,
    chunked_causal_loss,
    cross_entropy,
    entropy,
    kl_divergence,
    perplexity,
    shift,
    token_losses,
)
from torch.nn import functional as F


def distributions(size):
    weights = st.lists(st.floats(0.01, 1.0), min_size=size, max_size=size)
    return weights.map(lambda values: torch.tensor(values, dtype=torch.float64) / sum(values))


@given(distributions(5), distributions(5))
def test_entropies_are_torchs(p, q):
    assert torch.isclose(entropy(p), torch.distributions.Categorical(p).entropy())
    expected = torch.distributions.kl_divergence(torch.distributions.Categorical(p), torch.distributions.Categorical(q))
    assert torch.isclose(kl_divergence(p, q), expected, atol=1e-12)
    assert torch.isclose(cross_entropy(p, q), F.cross_entropy(q.log()[None], p[None]))
    assert kl_divergence(p, q) >= -1e-12 and abs(kl_divergence(p, p)) < 1e-12


def test_outcomes_that_never_happen_cost_nothing():
    p = torch.tensor([0.5, 0.5, 0.0])
    assert torch.isclose(entropy(p), torch.tensor(math.log(2)))
    assert cross_entropy(p, torch.tensor([0.5, 0.5, 0.0])).isfinite()
    assert cross_entropy(p, torch.tensor([1.0, 0.0, 0.0])) == math.inf


def test_perplexity():
    assert perplexity(math.log(65)) == pytest.approx(65)
    assert perplexity(0) == 1
    assert perplexity(800) == math.inf and math.isnan(perplexity(math.nan))


def batch(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 50, 16, generator=draw).to(dtype).requires_grad_()
    head = torch.randn(97, 16, generator=draw).to(dtype).requires_grad_()
    labels = torch.randint(0, 97, (2, 50), generator=draw)
    labels[0, :5] = -100
    labels[1, 49] = -100
    return hidden, head, labels


def test_the_target_is_the_next_token():
    labels = torch.tensor([[3, 4, -100, 5]])
    assert shift(labels).tolist() == [[4, -100, 5, -100]]


def test_the_sum_and_the_number_are_torchs():
    hidden, head, labels = batch()
    logits = hidden @ head.T
    total, targets = causal_loss(logits, labels)
    assert targets == 49 - 4 + 48  # of 49 in each row, four and one are none
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(total / targets, expected)
    each = token_losses(logits.flatten(0, 1), shift(labels).flatten())
    torch.testing.assert_close(each.sum(), total)
    assert (each == 0).sum() == 100 - targets


def test_large_logits_stay_finite():
    logits = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]])
    assert token_losses(logits, torch.tensor([1, 0])).tolist() == [1000.0, 1000.0]


def test_16_bits_are_summed_in_32():
    hidden, head, labels = batch(torch.bfloat16)
    logits = (hidden @ head.T).detach()
    total, _ = causal_loss(logits, labels)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, causal_loss(logits.float(), labels)[0])


@pytest.mark.parametrize("chunk", [1, 17, 50, 100, 1000])
def test_in_chunks_it_is_the_same_loss(chunk):
    hidden, head, labels = batch()
    total, targets = causal_loss(hidden @ head.T, labels)
    expected = torch.autograd.grad(total, (hidden, head))
    parts, number = chunked_causal_loss(hidden, head, labels, chunk)
    torch.testing.assert_close(parts, total)
    assert number == targets
    for ours, theirs in zip(torch.autograd.grad(parts, (hidden, head)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_in_chunks_the_whole_logits_never_exist():
    """The largest tensor of a pass, by every operation's output."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, (tuple, list)) else [out]:
                self.numel = max(self.numel, each.numel() if isinstance(each, torch.Tensor) else 0)
            return out

    hidden, head, labels = batch()
    sizes = {}
    for chunk in (0, 10):
        with Largest() as largest:
            if chunk:
                total, _ = chunked_causal_loss(hidden, head, labels, chunk)
            else:
                total, _ = causal_loss(hidden @ head.T, labels)
            total.backward()
        sizes[chunk] = largest.numel
    assert sizes == {0: 100 * 97, 10: max(100 * 16, 97 * 16)}
    nothing = torch.nn.Module()
    kept = saved_bytes(nothing, lambda: chunked_causal_loss(hidden, head, labels, 10)[0])
    whole = saved_bytes(nothing, lambda: causal_loss(hidden @ head.T, labels)[0])
    assert whole >= 4 * 100 * 97 > 2 * kept  # nor are its parts kept for the backward pass
