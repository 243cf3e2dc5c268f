"""Guessing changes no greedy token, and no law."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_core import GPT
from llm_core.config import GPTConfig
from llm_core.generate import Sampling, generate
from llm_serve.speculation.accept import accept, break_even, expected_tokens, speedup
from llm_serve.speculation.decode import speculate
from llm_serve.speculation.guess import DraftModel, PromptLookup
from llm_serve.speculation.law import law
from tiny_models import VOCAB, pair

GUESSERS = {
    "lookup": lambda: PromptLookup(VOCAB),
    "another model": lambda: DraftModel(pair(1)[1]),
    "the model itself": lambda: DraftModel(pair()[1]),
}


@pytest.mark.parametrize("name", GUESSERS)
@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=20), st.integers(1, 25), st.integers(0, 5),
    st.sampled_from([1.0, 1.4]), st.sampled_from([(), (7, 11, 30)]),
)  # fmt: skip
def test_greedy_tokens_are_those_of_generate(name, prompt, most, guesses, penalty, stops):
    asked = Sampling(max_new_tokens=most, temperature=0, repetition_penalty=penalty, stop_ids=stops)
    found = speculate(pair()[1], prompt, asked, GUESSERS[name](), guesses)
    assert list(found.tokens) == generate(pair()[1], [prompt], asked)[0]
    assert found.kept <= found.guessed and found.looks <= len(found.tokens)
    if name == "the model itself":
        assert found.kept == found.guessed or stops


def test_the_model_itself_as_its_guesser_is_always_right_and_takes_fewest_looks():
    asked = Sampling(max_new_tokens=40, temperature=0)
    found = speculate(pair()[1], [1, 2, 3], asked, DraftModel(pair()[1]), 4)
    assert (found.looks, found.kept, found.tokens_per_look) == (8, 32, 5)  # 40 tokens by fives


def test_lookup_finds_the_longest_and_latest():
    look = PromptLookup(10, longest=2)
    ask = Sampling()
    assert look.guess([1, 2, 3, 9, 2, 4, 1, 2], 2, ask, None)[0] == [3, 9]  # after 1 2, not after the later 2
    assert look.guess([2, 3, 2, 4, 2], 3, ask, None)[0] == [4, 2]  # the latest 2
    tokens, sure = look.guess([5, 6, 7], 3, ask, None)
    assert tokens == [] and sure.shape == (0, 10)
    with pytest.raises(ValueError, match="longest=0"):
        PromptLookup(10, 0)


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the cells that may occur; and nothing in those that may not."""
    may = expected > 1e-12
    assert counts[~may].sum() == 0
    return float(((counts[may] - expected[may]) ** 2 / expected[may]).sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_rule_keeps_the_law(seed):
    """20,000 draws of the first token under guesses from q: chi-square of 5 cells stays under 18.5 (p = 0.001)."""
    dice = torch.Generator().manual_seed(seed)
    p, q = torch.rand(2, 6, generator=dice).pow(2).add(1e-3).div_(1)
    p[0], q[1] = 0.0, 0.0  # guesses that can never stay, and a token that is never guessed
    p, q = p / p.sum(), q / q.sum()
    counts, stayed = torch.zeros(6), 0
    for _ in range(20_000):
        guess = int(torch.multinomial(q, 1, generator=dice))
        kept, following = accept(torch.stack([p, p]), q[None], [guess], dice)
        counts[guess if kept else following] += 1
        stayed += kept
    assert chi_square(counts, 20_000 * p) < 18.5
    rate = float(torch.minimum(p, q).sum())  # theorem 3.5 of the paper: a guess stays as often as p and q overlap
    assert stayed / 20_000 == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 20_000) ** 0.5)


def test_the_law_of_whole_answers():
    """All 27 answers of three tokens, drawn 1,500 times with guesses of another model: chi-square of 26 degrees under
    54.1 (p = 0.001); and the draft's own law is far from it."""
    torch.manual_seed(3)
    config = GPTConfig(
        3, 16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16, initializer_range=0.5
    )
    model, draft = GPT(config).eval(), GPT(config).eval()
    prompt, settings_ = [0, 1], {"temperature": 0.8, "top_p": 0.95}

    @torch.no_grad()
    def laws(of: GPT) -> torch.Tensor:
        found = []
        for answer in itertools.product(range(3), repeat=3):
            ids, chance = torch.tensor([[*prompt, *answer]]), 1.0
            logits = of(ids).logits[0]
            for place, token in enumerate(answer):
                text = [*prompt, *answer[:place]]
                chance *= float(law(logits[len(text) - 1], text, Sampling(**settings_))[token])
            found.append(chance)
        return torch.tensor(found)

    counts = torch.zeros(27)
    guesser = DraftModel(draft)
    for seed in range(1_500):
        tokens = speculate(model, prompt, Sampling(max_new_tokens=3, seed=seed, **settings_), guesser, 2).tokens
        counts[tokens[0] * 9 + tokens[1] * 3 + tokens[2]] += 1
    wanted = laws(model)
    assert float(wanted.sum()) == pytest.approx(1, abs=1e-4)
    assert chi_square(counts, 1_500 * wanted) < 54.1
    assert float((laws(draft) - wanted).abs().sum()) > 0.1


def test_expected_tokens_and_when_it_pays():
    """The formula is the sum over how many guesses stay; and a simulation."""
    for a, k in ((0.3, 4), (0.8, 4), (0.0, 3), (1.0, 5), (0.5, 0)):
        by_hand = sum((stay + 1) * a**stay * ((1 - a) if stay < k else 1) for stay in range(k + 1))
        assert expected_tokens(a, k) == pytest.approx(by_hand)
    assert speedup(0.8, 4, 0.05) == pytest.approx(expected_tokens(0.8, 4) / 1.2)
    assert speedup(0.5, 0, 0.05) == 1
    for k, c, look in ((4, 0.1, 1.0), (2, 0.3, 1.2), (8, 0.0, 1.5)):
        edge = break_even(k, c, look)
        assert speedup(edge, k, c, look) == pytest.approx(1, abs=1e-6)
        assert speedup(edge - 0.01, k, c, look) < 1 < speedup(edge + 0.01, k, c, look)
    assert break_even(4, 1.1) == float("inf")  # a draft that costs as much as the model never pays
    with pytest.raises(ValueError, match="acceptance=2"):
        expected_tokens(2, 1)


def test_a_guesser_of_another_vocabulary():
    with pytest.raises(ValueError, match=f"the guesser has 7 tokens and the model {VOCAB}"):
        speculate(pair()[1], [1, 2, 1], Sampling(max_new_tokens=3), PromptLookup(7))


def test_distributions_that_differ_by_rounding_alone(monkeypatch):
    """The guess falls by the last bit of a draw, and there is nothing to replace it from: it stays."""
    q = torch.tensor([0.25, 0.75])
    p = torch.stack([q * (1 - 1e-6), torch.tensor([0.0, 1.0])])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1.0))
    assert accept(p, q[None], [0]) == (1, 1)
