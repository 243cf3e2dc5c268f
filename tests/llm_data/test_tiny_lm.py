"""The small model that tokenizers are compared by: what a text costs it, counted two ways."""

from __future__ import annotations

import math

import pytest
import torch
from llm_data.tiny_lm import CONTEXT, TinyLM, next_token_bits, total_nats, train_tiny_lm
from llm_data.tokenizers.fast import encode_documents, train_fast_tokenizer

TEXTS = [f"def f{i}(x):\n    return x + {i}\n" for i in range(40)]
TOKENIZER = train_fast_tokenizer(TEXTS, 270)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_a_text_costs_the_sum_of_its_tokens(count: int) -> None:
    torch.manual_seed(0)
    model = TinyLM(len(TOKENIZER))
    end = TOKENIZER.eos_token_id
    ids = [end] + [i for document in encode_documents(TOKENIZER, TEXTS[:count]) for i in [*document, end]]
    one_by_one = 0.0
    for place in range(1, len(ids)):
        begin = (place - 1) // CONTEXT * CONTEXT  # windows begin anew
        one_by_one += next_token_bits(model, ids[begin:place])[ids[place]].item() * math.log(2)
    nats, tokens = total_nats(model, TOKENIZER, TEXTS[:count])
    assert tokens == len(ids) - 1
    assert nats == pytest.approx(one_by_one, rel=1e-5)


def test_training_learns_and_repeats() -> None:
    before, tokens = total_nats(TinyLM(len(TOKENIZER)), TOKENIZER, TEXTS)
    after = [total_nats(train_tiny_lm(TOKENIZER, TEXTS, 1e10, seed), TOKENIZER, TEXTS)[0] for seed in (1, 1, 2)]
    assert before / tokens > 5  # of ln 270 = 5.6
    assert after[0] / tokens < 4
    assert after[0] == after[1] != after[2]
