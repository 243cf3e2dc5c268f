"""80/10/10, against transformers' collator, id by id."""

import pytest
import torch
from llm_core.families.mlm import Masking, mask_tokens
from llm_data.tokenizers.fast import character_tokenizer
from transformers import DataCollatorForLanguageModeling

SHARES = [(0.15, 0.8, 0.1), (0.4, 0.5, 0.4), (0.15, 1.0, 0.0), (0.3, 0.0, 1.0), (0.3, 0.8, 0.0), (1.0, 0.0, 0.0)]


@pytest.fixture(scope="module")
def tokenizer():
    made = character_tokenizer(["abcdefghijklmnopqrstuvwxyz"])
    made.add_special_tokens({"mask_token": "<|mask|>"})
    return made


def rows(tokenizer, count=40, time=50):
    ids = torch.randint(0, 26, (count, time), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = tokenizer.eos_token_id
    ids[::2, 30:] = tokenizer.pad_token_id
    return ids, ids >= 26


@pytest.mark.parametrize("shares", SHARES)
def test_ids_and_labels_are_those_of_transformers(tokenizer, shares):
    ids, special = rows(tokenizer)
    chosen, masked, random = shares
    theirs = DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=chosen, mask_replace_prob=masked, random_replace_prob=random, seed=3
    )([{"input_ids": row} for row in ids])
    draw = torch.Generator().manual_seed(3)
    before, state = ids.clone(), torch.get_rng_state()
    ours = mask_tokens(ids, special, tokenizer.mask_token_id, len(tokenizer), Masking(*shares), draw)
    assert torch.equal(ours.input_ids, theirs["input_ids"])
    assert torch.equal(ours.labels, theirs["labels"])
    assert torch.equal(ids, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_no_target_is_untouched_and_special_tokens_are_never_chosen(tokenizer):
    ids, special = rows(tokenizer)
    inputs, labels = mask_tokens(ids, special, tokenizer.mask_token_id, len(tokenizer), Masking(1.0, 0.8, 0.1))
    assert torch.equal(labels == -100, special)
    assert torch.equal(labels[~special], ids[~special])
    assert torch.equal(inputs[special], ids[special])


def test_random_tokens_come_from_the_whole_vocabulary(tokenizer):
    ids = torch.zeros(100, 100, dtype=torch.long)
    inputs, _ = mask_tokens(ids, ids > 0, 28, 29, Masking(1.0, 0.0, 1.0), torch.Generator().manual_seed(0))
    assert set(inputs.unique().tolist()) == set(range(29))


@pytest.mark.parametrize(
    ("shares", "message"),
    [((1.5, 0.8, 0.1), "mlm_probability=1.5"), ((0.15, -0.1, 0.1), "mask_replace_prob=-0.1"),
     ((0.15, 0.8, 0.3), "more than 1 together"), ((0.15, float("nan"), 0.1), "mask_replace_prob=nan")],
)  # fmt: skip
def test_shares_that_cannot_be(shares, message):
    with pytest.raises(ValueError, match=message):
        Masking(*shares)
