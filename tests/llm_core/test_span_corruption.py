"""Span corruption: there and back, the lengths that the formula says, and T5's sentinels and shift."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_core.families.encoders import shift_right
from llm_core.families.span_corruption import (
    SpanCorruption,
    corrupt,
    corrupt_rows,
    noise_mask,
    restore,
    segments,
    sentinel_ids,
)
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

TEXT = torch.arange(100, 110)


def hidden(*places, length=10):
    mask = torch.zeros(length, dtype=torch.bool)
    mask[list(places)] = True
    return mask


def test_by_hand():
    inputs, targets = corrupt(TEXT, hidden(2, 3, 7), torch.tensor([9, 8, 7]))
    assert inputs.tolist() == [100, 101, 9, 104, 105, 106, 8, 108, 109]
    assert targets.tolist() == [9, 102, 103, 8, 107, 7]


@pytest.mark.parametrize("places", [(0,), (9,), (0, 9), tuple(range(10)), (0, 1, 8, 9)])
def test_runs_at_the_ends_come_back(places):
    sentinels = torch.tensor([9, 8, 7])
    assert restore(*corrupt(TEXT, hidden(*places), sentinels), sentinels).tolist() == TEXT.tolist()


def test_an_empty_span_is_an_answer():
    assert restore(torch.tensor([1, 9, 2]), torch.tensor([9, 8]), torch.tensor([9, 8])).tolist() == [1, 2]


@settings(deadline=None)
@given(st.data())
def test_any_text_comes_back_from_inputs_and_targets(data):
    text = torch.tensor(data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=60)))
    noise = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text))))
    sentinels = sentinel_ids(140, 40)
    inputs, targets = corrupt(text, noise, sentinels)
    assert torch.equal(restore(inputs, targets, sentinels), text)
    runs = int((noise & ~torch.cat([torch.tensor([False]), noise[:-1]])).sum())
    assert (len(inputs), len(targets)) == (len(text) - int(noise.sum()) + runs, int(noise.sum()) + runs + 1)
    assert sorted(set(targets.tolist()) & set(sentinels.tolist()), reverse=True) == sentinels[: runs + 1].tolist()


@settings(deadline=None)
@given(st.integers(2, 300), st.floats(0.01, 0.99), st.floats(1, 10), st.integers(0, 5))
def test_counts_are_kept_by_every_mask(length, density, span, seed):
    how = SpanCorruption(density, span)
    noise, spans = how.counts(length)
    mask = noise_mask(length, how, torch.Generator().manual_seed(seed))
    first = mask & ~torch.cat([torch.tensor([False]), mask[:-1]])
    assert (len(mask), int(mask.sum()), int(first.sum())) == (length, noise, spans)
    assert not mask[0] and mask[-1]
    assert noise == min(max(round(length * density), 1), length - 1)


def test_counts_of_the_published_setting():
    # Raffel et al. 2020: 512 tokens, 15%, mean 3
    assert SpanCorruption().counts(512) == (77, 26)
    assert SpanCorruption(0.5, 1).counts(2) == (1, 1)


def test_every_cut_is_equally_likely():
    draw = torch.Generator().manual_seed(0)
    seen = Counter(tuple(segments(5, 3, draw).tolist()) for _ in range(1200))
    assert len(seen) == 6  # 4 choose 2
    assert all(abs(count - 200) < 4 * (1200 * 1 / 6 * 5 / 6) ** 0.5 for count in seen.values())
    assert segments(4, 1).tolist() == [4] and segments(3, 3).tolist() == [1, 1, 1]


def test_sentinels_are_numbered_as_in_t5s_tokenizer():
    tokenizer = T5Tokenizer(extra_ids=20)
    names = [f"<extra_id_{i}>" for i in range(20)]
    assert sentinel_ids(len(tokenizer), 20).tolist() == tokenizer.convert_tokens_to_ids(names)


def test_a_batch_needs_no_padding_and_its_rows_differ():
    rows = torch.arange(100).repeat(8, 1)
    sentinels, how = sentinel_ids(120, 10), SpanCorruption()
    inputs, targets = corrupt_rows(rows, sentinels, how, torch.Generator().manual_seed(0))
    noise, spans = how.counts(100)
    assert inputs.shape == (8, 100 - noise + spans) and targets.shape == (8, noise + spans + 1)
    assert len({tuple(row.tolist()) for row in inputs}) == 8
    for one, other in zip(inputs, targets, strict=True):
        assert restore(one, other, sentinels).tolist() == list(range(100))


def test_the_generator_decides_and_the_global_one_is_left_alone():
    before = torch.get_rng_state()
    one, other = (noise_mask(200, SpanCorruption(), torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_decoder_reads_what_t5_makes_it_read():
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    labels = torch.tensor([[49, 5, 6, 48, -100, -100], [49, 5, 6, 7, 8, 48]])
    assert torch.equal(shift_right(labels, 0, 0), model._shift_right(labels))


def test_errors():
    with pytest.raises(ValueError, match=r"noise_density=1\.0"):
        SpanCorruption(1.0)
    with pytest.raises(ValueError, match=r"mean_noise_span_length=0\.5"):
        SpanCorruption(0.15, 0.5)
    with pytest.raises(ValueError, match="a text of 1 token"):
        SpanCorruption().counts(1)
    with pytest.raises(ValueError, match="2 spans need 3 sentinels, and there are 2"):
        corrupt(TEXT, hidden(2, 5), torch.tensor([9, 8]))
    with pytest.raises(ValueError, match="9 stands twice"):
        restore(torch.tensor([1, 9, 2, 9]), torch.tensor([9, 5, 9, 6]), torch.tensor([9, 8]))
    with pytest.raises(ValueError, match="no span for sentinel 8"):
        restore(torch.tensor([1, 9, 2, 8]), torch.tensor([9, 5]), torch.tensor([9, 8]))
    with pytest.raises(ValueError, match="begin with 5"):
        restore(torch.tensor([1, 9]), torch.tensor([5, 9]), torch.tensor([9, 8]))
