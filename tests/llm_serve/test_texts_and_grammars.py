"""Text as it grows, stop texts, and grammars."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_core import GPT
from llm_core.config import GPTConfig
from llm_core.generate import Sampling
from llm_data.tokenizers.fast import train_fast_tokenizer, vocab_size
from llm_serve import Engine, EngineConfig, Request
from llm_serve.engine.request import Finish
from llm_serve.engine.text import TextStream
from llm_serve.errors import RequestError
from llm_serve.structured.grammar import json_schema, regex


@pytest.fixture(scope="module")
def tokenizer():
    return train_fast_tokenizer(['{"name": "Ann", "age": 12} one two three é 😀 thé end'] * 20, 330)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size(tokenizer) + 3, 32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=256
    )
    return GPT(config).eval()


def stream(tokenizer, tokens, stop=()):
    """All texts that were given out, the whole, and after how many tokens it stopped."""
    made = TextStream(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), stop)
    parts = []
    for count, token in enumerate(tokens, start=1):
        parts.append(made.push(token))
        if made.stopped:
            return parts, count
    return [*parts, made.close()], None


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab é😀\n{", max_size=20), st.lists(st.integers(0, 329), max_size=6))
def test_pieces_make_the_text(tokenizer, text, more):
    tokens = tokenizer(text, add_special_tokens=False).input_ids + [each for each in more if each < len(tokenizer)]
    parts, _ = stream(tokenizer, tokens)
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(parts) == whole
    so_far = ""
    for part in parts[:-1]:  # what was given out stays the beginning, whatever came
        so_far += part
        assert whole.startswith(so_far)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abé😀", max_size=24), st.lists(st.text(alphabet="abé😀", min_size=1, max_size=4), max_size=3))
def test_a_stop_text_ends_it_wherever_tokens_cut(tokenizer, text, stops):
    tokens = [token for letter in text for token in tokenizer(letter, add_special_tokens=False).input_ids]
    parts, stopped = stream(tokenizer, tokens, tuple(stops))
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if not ends:
        assert "".join(parts) == text and stopped is None
        return
    first = min(end for end, _ in ends)  # the first that is complete
    begin = min(start for end, start in ends if end == first)
    assert "".join(parts) == text[:begin]
    assert len(tokenizer.decode(tokens[:stopped])) >= first


def test_a_stop_text_over_several_tokens_in_the_engine(model, tokenizer):
    """The greedy answer with a stop text taken from its middle is what stands before it."""
    prompt = tuple(tokenizer("one two", add_special_tokens=False).input_ids)
    asked = Sampling(max_new_tokens=30, temperature=1.0, seed=4)
    whole = Engine(model, tokenizer).run([Request(prompt, asked)])[0][0]
    place = next(i for i in range(4, len(whole.text) - 3) if whole.text.find(whole.text[i : i + 3]) == i)
    cut = Engine(model, tokenizer).run([Request(prompt, asked, stop=(whole.text[place : place + 3],))])[0][0]
    assert cut.text == whole.text[:place] and cut.finish is Finish.STOP
    assert cut.tokens == whole.tokens[: len(cut.tokens)] and len(cut.tokens) < len(whole.tokens)


def test_rows_without_a_token_are_never_drawn(model, tokenizer):
    answers = Engine(model, tokenizer).run([Request((1,), Sampling(max_new_tokens=200, temperature=2.0), n=3)])[0]
    assert max(token for each in answers for token in each.tokens) < vocab_size(tokenizer) < model.config.vocab_size


SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "age"],
    "properties": {"name": {"type": "string", "pattern": "^[a-z]{1,4}$"}, "age": {"type": "integer", "maximum": 99,
                                                                                  "minimum": 0}},
}  # fmt: skip


def test_every_sample_fits_the_schema(model, tokenizer):
    """A model of random weights, at a high temperature: the grammar alone makes its answers valid."""
    grammar = json_schema(tokenizer, SCHEMA, model.config.vocab_size)
    asked = Sampling(max_new_tokens=120, temperature=1.5, seed=0)
    answers = Engine(model, tokenizer, EngineConfig(max_num_seqs=32)).run(
        [Request((1,), asked, n=24, constraint=grammar)]
    )
    texts = []
    for each in answers[0]:
        if each.finish is Finish.STOP:  # one that was cut is a beginning
            found = json.loads(each.text)
            assert set(found) == {"name", "age"} and 0 <= found["age"] <= 99
            assert re.fullmatch("[a-z]{1,4}", found["name"])
            texts.append(each.text)
    assert len(set(texts)) > 5  # and they differ: each answer has a grammar of its own


def test_a_regular_expression_greedily(model, tokenizer):
    grammar = regex(tokenizer, r"(one|two) [0-9]{3}", model.config.vocab_size)
    found = Engine(model, tokenizer).run(
        [Request((1,), Sampling(max_new_tokens=30, temperature=0), constraint=grammar)] * 2
    )
    assert re.fullmatch(r"(one|two) [0-9]{3}", found[0][0].text) and found[0] == found[1]


def test_what_no_grammar_can_follow(model, tokenizer):
    rows = model.config.vocab_size
    with pytest.raises(RequestError, match=r"the JSON schema cannot be followed: .*"):
        json_schema(tokenizer, {"type": "nothing"}, rows)
    with pytest.raises(RequestError, match="the regular expression cannot be followed"):
        regex(tokenizer, "(", rows)


def test_a_constraint_that_allows_nothing_ends_its_answer_alone(model, tokenizer):
    class Nothing:
        def start(self):
            return self

        def mask(self):
            return torch.zeros(model.config.vocab_size, dtype=torch.bool)

        def accept(self, token):
            raise AssertionError(token)

    engine = Engine(model, tokenizer)
    bad, good = engine.run([
        Request((1,), Sampling(max_new_tokens=5), constraint=Nothing()), Request((1,), Sampling(max_new_tokens=5)),
    ])  # fmt: skip
    assert bad[0].finish is Finish.ERROR and bad[0].tokens == ()
    assert good[0].finish is Finish.LENGTH and len(good[0].tokens) == 5
    assert engine.scheduler.pool.used == 0
