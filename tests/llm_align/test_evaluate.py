"""Intervals against enumeration and published values; overlap, formats, diversity and forgetting by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from llm_align.evaluate.contamination import duplicates, ngram_overlap, prompts_inside
from llm_align.evaluate.diversity import distinct_n, diversity
from llm_align.evaluate.formats import format_effect, score_table
from llm_align.evaluate.intervals import mcnemar, paired_bootstrap, wilson, win_rate
from llm_align.evaluate.learned import learned, refuse_wrong_labels
from llm_align.evaluate.retention import Abilities, abilities, retention
from llm_core.model import GPT, GPTConfig
from llm_data.tokenizers.fast import train_fast_tokenizer
from llm_peft.tasks.other_text import OtherText

# -- intervals ---------------------------------------------------------------------------------------------------------


def test_wilson_has_the_published_values():
    # Newcombe 1998 (Statistics in Medicine 17), table I, method 3.
    for successes, number, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                         (1, 29, 0.0061, 0.1718)):  # fmt: skip
        found = wilson(successes, number)
        assert (found.value, found.low, found.high) == pytest.approx((successes / number, low, high), abs=5e-5)
    assert wilson(20, 20).high == 1.0 and wilson(20, 20).low == pytest.approx(1 - 0.1611, abs=5e-5)
    assert str(wilson(1, 2)) == "0.500 [0.095, 0.905]"


@pytest.mark.parametrize(("p", "tied"), [(0.5, 0.0), (0.7, 0.3), (0.3, 0.5), (0.5, 0.8)])
def test_the_win_rate_interval_covers_as_often_as_it_says(p, tied):
    number, win = 40, p - tied / 2
    covered = 0.0
    for wins in range(number + 1):  # the whole trinomial, no draws
        for ties in range(number + 1 - wins):
            losses = number - wins - ties
            ways = math.comb(number, wins) * math.comb(number - wins, ties)
            found = win_rate(wins, ties, losses)
            held = found.low <= p <= found.high
            covered += held * ways * win**wins * tied**ties * (1 - win - tied) ** losses
    assert 0.93 < covered < 0.985  # an interval that took ties for coins would cover more than 0.998 at tied = 0.8


def test_ties_are_half_and_narrow_the_interval():
    plain, tied = win_rate(20, 0, 20), win_rate(5, 30, 5)
    assert plain.value == tied.value == 0.5 and tied.high - tied.low < 0.6 * (plain.high - plain.low)
    assert win_rate(0, 9, 0).low < 0.5 < win_rate(0, 9, 0).high
    assert win_rate(3, 2, 5).low == pytest.approx(1 - win_rate(5, 2, 3).high)  # B's view
    for wrong in ((-1, 0, 2), (0, 0, 0)):
        with pytest.raises(ValueError, match="none may be below 0"):
            win_rate(*wrong)
    with pytest.raises(ValueError, match="confidence=95"):
        wilson(1, 2, confidence=95)


def test_the_bootstrap_is_the_enumeration():
    before, after = [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 3.0]
    found = paired_bootstrap(before, after, confidence=0.9, draws=40_000)
    every = [np.mean(draw) for draw in product(np.subtract(after, before), repeat=4)]
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every, [0.05, 0.95])))
    assert found == paired_bootstrap(before, after, confidence=0.9, draws=40_000)


def test_pairs_beat_two_separate_samples():
    hard = np.random.default_rng(0).normal(0, 10, 50)
    found = paired_bootstrap(hard, hard + np.tile([0.9, 1.1], 25))
    assert found.value == pytest.approx(1) and found.high - found.low < 0.1
    for wrong in (([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([[1.0], [2.0]], [[1.0], [2.0]])):
        with pytest.raises(ValueError, match="of the same questions"):
            paired_bootstrap(*wrong)
    with pytest.raises(ValueError, match="not finite"):
        paired_bootstrap([1.0, math.nan], [1.0, 2.0])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (3, 3), (0, 7), (8, 2)])
def test_mcnemar_is_the_enumeration(gained, lost):
    before = [False] * gained + [True] * lost + [True, False, True]
    after = [True] * gained + [False] * lost + [True, False, True]
    ways = [abs(2 * sum(each) - gained - lost) >= abs(gained - lost) for each in product((0, 1), repeat=gained + lost)]
    assert mcnemar(before, after) == pytest.approx(sum(ways) / len(ways))
    with pytest.raises(ValueError, match="right with wrong"):
        mcnemar([0.5, 0.0], [1.0, 0.0])


# -- what was trained on -----------------------------------------------------------------------------------------------


def test_overlap_by_hand():
    training = ["One two three, FOUR five!", "six seven"]
    assert ngram_overlap(["two three four six", "a b", "one\ntwo"], iter(training), n=2) == [2 / 3, 0.0, 1.0]
    # Words across two texts are no n-gram; a text without one has no share.
    assert ngram_overlap(["five six seven", "six"], training, n=2) == [0.5, None]
    text = " ".join(map(str, range(9)))
    assert ngram_overlap([text], [text + " more"]) == [1.0] and ngram_overlap([text], [text[:-2]]) == [0.5]
    with pytest.raises(ValueError, match="n=0"):
        ngram_overlap(["a"], ["a"], n=0)


def test_duplicates_and_prompts():
    training = ["def f(a):\n    return  a", "x = 1"]
    assert duplicates(["def f(a): return a", "x=1", " x = 1\n"], training) == [0, 2]
    # Whole words alone: "def f(a)" ends inside "f(a):".
    assert prompts_inside(["f(a): return", "def f(a)", "x = 1", "y", "return a"], iter(training)) == [0, 2, 4]
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        prompts_inside(["x", " \n"], training)


# -- formats -----------------------------------------------------------------------------------------------------------


def scores_of(seed: int, effect: float = 0.0):
    """60 questions of different hardness in 4 formats, of which two are better by `effect`."""
    dice = np.random.default_rng(seed)
    return dice.normal(0, 3, (60, 1)) + dice.normal(0, 0.3, (60, 4)) + [0, effect, 0, effect]


def test_formats_that_do_not_matter_are_seldom_found():
    found = [format_effect(scores_of(seed), draws=200) for seed in range(100)]
    # An exchange over questions would never be surprised: hardness would pass for chance.
    assert 3 <= sum(each.p_value <= 0.1 for each in found) <= 19
    assert 1 <= sum(each.spread > each.chance_spread for each in found) <= 12
    assert np.mean([each.deviation for each in found]) < 0.03


def test_formats_that_matter_are_found():
    table = scores_of(0, effect=0.5)
    found = format_effect(table)
    assert found.p_value < 0.001 and found.spread > 3 * found.chance_spread
    assert found.deviation == pytest.approx(np.std([0, 0.5, 0, 0.5], ddof=1), abs=0.06)
    assert found.means == pytest.approx(table.mean(0))


def test_chance_of_two_questions_is_the_enumeration():
    # Exchanged within rows, both rows point the same way in half of all cases.
    found = format_effect([[0, 1], [0, 1]], draws=4_000)
    assert found.spread == 1.0 and found.p_value == pytest.approx(0.5, abs=0.03) and found.chance_spread == 1.0
    same = format_effect([[0.1, 0.1], [0.7, 0.7]])
    assert same.p_value == 1.0 and same.spread == same.deviation == 0.0


def test_a_table_of_scores():
    table = score_table(lambda question, form: float(form.format(question) == "<b>"), "abc", ["<{}>", "{}"])
    assert table.tolist() == [[0, 0], [1, 0], [0, 0]]
    for wrong in ([1.0, 2.0], [[1.0, 2.0]], [[1.0], [2.0]], [[math.nan, 1], [1, 1]]):
        with pytest.raises(ValueError, match="give finite scores"):
            format_effect(wrong)
    with pytest.raises(ValueError, match="draws=0"):
        format_effect([[0, 1], [0, 1]], draws=0)


# -- diversity ---------------------------------------------------------------------------------------------------------


def test_diversity_by_hand():
    found = diversity([[1, 2, 1, 9], [1, 2, 3, 4], [9]], stop_ids={9}, orders=(1, 2, 5))
    assert found.distinct == {1: 4 / 7, 2: 4 / 5, 5: pytest.approx(math.nan, nan_ok=True)}
    assert (found.mean_length, found.finished) == (7 / 3, 2 / 3)
    assert found.first_entropy == pytest.approx(-(2 / 3 * math.log(2 / 3) + math.log(1 / 3) / 3))
    assert diversity([[1, 9]] * 5, {9}).first_entropy == 0.0
    assert distinct_n([[1, 2], [3, 4]], 2) == 1.0  # no pair across two answers
    for answers, orders in (([], (1,)), ([[1], []], (1,))):
        with pytest.raises(ValueError, match="no answer"):
            diversity(answers, {9}, orders)
    with pytest.raises(ValueError, match=r"orders=\(0,\)"):
        diversity([[1]], {9}, (0,))


# -- forgetting --------------------------------------------------------------------------------------------------------


def test_forgetting_is_the_difference_row_by_row():
    torch.manual_seed(0)
    models = [GPT(GPTConfig(64, 32, max_position_embeddings=16)).eval() for _ in range(2)]
    text = OtherText("English", torch.randint(64, (5, 16)), 3.0)
    before, after = (abilities(model, [text], [0.0, 1.0, 1.0]) for model in models)
    found = retention(before, after)
    change = found.bits["English"]
    # The mean over rows of equal length is the text's own number.
    assert (change.before, change.after) == pytest.approx((text.bits(models[0]), text.bits(models[1])), rel=1e-5)
    rows = np.subtract(after.bits["English"], before.bits["English"])
    assert change.error == pytest.approx(np.sqrt(((rows - rows.mean()) ** 2).sum() / 4 / 5))
    assert change.interval.value == pytest.approx(change.difference) and change.interval.low < change.difference
    assert found.score.difference == found.score.error == 0.0
    with pytest.raises(ValueError, match="on the same texts"):
        retention(before, Abilities({}, after.scores))
    with pytest.raises(ValueError, match="of the same questions"):
        retention(before, Abilities(after.bits, (1.0,)))


# -- what is learned ---------------------------------------------------------------------------------------------------


def test_what_is_learned_is_read_back():
    tokenizer = train_fast_tokenizer(["a question, an answer, another one"] * 30, 300)
    tokenizer.eos_token = "<|endoftext|>"
    end = tokenizer.eos_token_id
    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}] * 2
    pieces = [(tokenizer(each["content"])["input_ids"] + [end], each["role"] == "assistant") for each in talk]
    ids = [token for piece, _ in pieces for token in piece]
    labels = [token if said else -100 for piece, said in pieces for token in piece]
    assert learned(ids, labels, tokenizer) == ["answer<|endoftext|>"] * 2
    # The labels' own numbers would read well here too; the tokens at their places do not.
    assert learned(ids, [*labels[1:], -100], tokenizer) == ["<|endoftext|>answer"] * 2
    refuse_wrong_labels(talk, ids, labels, tokenizer)
    faults = {
        "learned is": [
            [-100 if label == end else label for label in labels], ids,
            [token if label != -100 else -100 for token, label in zip(ids, [*labels[1:], -100], strict=True)],
        ],
        "at token": [[*labels[1:], -100]],
    }  # fmt: skip
    for wrong, several in faults.items():
        for fault in several:
            with pytest.raises(ValueError, match=wrong):
                refuse_wrong_labels(talk, ids, fault, tokenizer)
    tokenizer.eos_token = "<|pad|>"  # generation would stop elsewhere
    with pytest.raises(ValueError, match="learned is"):
        refuse_wrong_labels(talk, ids, labels, tokenizer)
