"""Draws and their filters against transformers'."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_core.model import GPT, GPTConfig
from llm_core.sampling import Sampling, adjust, generate, generate_by_transformers, sample_texts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

PROMPTS = [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8], [9]]


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    config = GPTConfig(97, hidden_size=64, num_hidden_layers=2, num_key_value_heads=2, max_position_embeddings=64)
    ours = GPT(config).eval()
    for parameter in ours.parameters():
        if parameter.ndim > 1:  # large weights: a greedy text that does not repeat one token
            torch.nn.init.normal_(parameter, std=0.3)
    values = {name: getattr(config, name) for name in GPTConfig.__dataclass_fields__}
    theirs = LlamaForCausalLM(LlamaConfig(**values, bos_token_id=None, eos_token_id=None)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
@pytest.mark.parametrize("stops", [(), (3,), tuple(range(0, 97, 7))])
def test_greedy_is_transformers_token_for_token(models, penalty, stops):
    ours, theirs = models
    how = Sampling(40, temperature=0, repetition_penalty=penalty, stop_ids=stops)
    found = generate(ours, PROMPTS, how)
    assert found == generate_by_transformers(theirs, PROMPTS, how)
    assert all(len(set(row)) > 3 or stops for row in found)
    assert all(token not in stops for row in found for token in row[:-1])


def test_a_batch_is_each_prompt_alone(models):
    ours, _ = models
    how = Sampling(30, temperature=0)
    assert generate(ours, PROMPTS, how) == [generate(ours, [prompt], how)[0] for prompt in PROMPTS]


def test_greedy_is_the_argmax_without_a_cache(models):
    ours, _ = models
    text = [5, 6, 7]
    for _ in range(20):
        text.append(int(ours(torch.tensor([text])).logits[0, -1].argmax()))
    assert text[3:] == generate(ours, [[5, 6, 7]], Sampling(20, temperature=0))[0]


@settings(deadline=None)
@given(
    st.floats(0.1, 3), st.integers(0, 120), st.floats(0.01, 1), st.floats(0.5, 2), st.integers(0, 2**31),
)  # fmt: skip
def test_filters_are_transformers(temperature, k, p, penalty, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 97, generator=draw) * 3
    seen = torch.randint(0, 97, (4, 9), generator=draw)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits) if penalty != 1 else logits
    expected = TemperatureLogitsWarper(temperature)(seen, expected)
    expected = TopKLogitsWarper(k)(seen, expected) if k else expected
    expected = TopPLogitsWarper(p)(seen, expected) if p < 1 else expected
    how = Sampling(temperature=temperature, top_k=k, top_p=p, repetition_penalty=penalty)
    assert torch.equal(adjust(logits, seen, how), expected)


@pytest.mark.parametrize("p", [0.75, 0.5, 1e-9])
def test_the_edge_of_top_p(p):
    """Where the tail is exactly 1 - p, and where no token would be left."""
    logits = torch.zeros(1, 4)
    seen = torch.zeros(1, 1, dtype=torch.long)
    assert torch.equal(adjust(logits, seen, Sampling(top_p=p)), TopPLogitsWarper(p)(None, logits))


def test_draws_follow_the_distribution(models):
    ours, _ = models
    number = 4000
    how = Sampling(1, temperature=0.7, top_k=5)
    drawn = torch.tensor(generate(ours, [[5, 6, 7]] * number, how))[:, 0]
    logits = adjust(ours(torch.tensor([[5, 6, 7]])).logits[:, -1], torch.tensor([[5, 6, 7]]), how)
    expected = logits.softmax(dim=1)[0]
    found = torch.bincount(drawn, minlength=97) / number
    assert set(drawn.tolist()) <= set(logits.topk(5).indices[0].tolist())
    # Five standard deviations of a share of 4,000 draws.
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / number).sqrt() + 1e-9).all()


def test_a_seed_gives_a_text(models):
    ours, theirs = models
    for run, model in ((generate, ours), (generate_by_transformers, theirs)):
        torch.manual_seed(77)
        state = torch.get_rng_state()
        first = run(model, PROMPTS, Sampling(20, seed=1))
        assert run(model, PROMPTS, Sampling(20, seed=1)) == first
        assert torch.equal(torch.get_rng_state(), state)  # the run's own numbers are left alone
        assert run(model, PROMPTS, Sampling(20, seed=2)) != first


def test_a_text_ends_where_the_model_does(models):
    ours, _ = models
    assert len(generate(ours, [[1] * 60], Sampling(40, temperature=0))[0]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0}, "top_p=0 must be above 0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_refused_prompts(models):
    ours, _ = models
    for prompts in ([], [[1], []]):
        with pytest.raises(ValueError, match="a prompt is empty"):
            generate(ours, prompts, Sampling())
    with pytest.raises(ValueError, match="64 tokens leaves no room in 64 positions"):
        generate(ours, [[1] * 64], Sampling())


def test_texts_end_at_the_end_of_text(monkeypatch):
    from llm_data.fast_tokenizer import character_tokenizer

    tokenizer = character_tokenizer(["abc"])
    given = []
    monkeypatch.setattr("llm_core.sampling.generate", lambda model, ids, how, pad: given.append(how) or [[0]])
    sample_texts(GPT(GPTConfig(len(tokenizer), hidden_size=32)), tokenizer, ["a"], Sampling(stop_ids=(1,)))
    assert given[0].stop_ids == (1, tokenizer.eos_token_id)


def test_texts(models):
    from llm_data.fast_tokenizer import character_tokenizer

    tokenizer = character_tokenizer(["abcdefgh"])
    how = Sampling(12, temperature=0)
    ours = GPT(GPTConfig(len(tokenizer), hidden_size=32, max_position_embeddings=32)).eval()
    values = {name: getattr(ours.config, name) for name in GPTConfig.__dataclass_fields__}
    theirs = LlamaForCausalLM(LlamaConfig(**values, bos_token_id=None, eos_token_id=None)).eval()
    theirs.load_state_dict(ours.state_dict())
    texts = sample_texts(ours, tokenizer, ["abc", "ba", "h"], how)
    assert texts == sample_texts(theirs, tokenizer, ["abc", "ba", "h"], how)
    assert texts[0].startswith("abc") and "<|" not in "".join(texts)
    with torch.no_grad():  # a head that says end of text after "abc"
        wanted = ours.features(torch.tensor([tokenizer("abc").input_ids]))[0, -1].clone()
        for model in (ours, theirs):
            model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
            model.lm_head.weight[tokenizer.eos_token_id] = wanted
            assert sample_texts(model, tokenizer, ["abc"], how) == ["abc"]


def test_a_tokenizer_without_special_tokens(models):
    ours, theirs = models
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 5, "b": 6, "c": 7}, unk_token="a")))
    plain.backend_tokenizer.pre_tokenizer = Whitespace()
    how, prompts = Sampling(4, temperature=0), ["a b c", "a"]
    assert (plain.eos_token_id, plain.pad_token_id) == (None, None)
    assert sample_texts(ours, plain, prompts, how) == sample_texts(theirs, plain, prompts, how)


def test_transformers_stop_at_the_last_position_too(models):
    ours, theirs = models
    how = Sampling(1000, temperature=0)
    found = generate_by_transformers(theirs, PROMPTS, how)
    assert found == generate(ours, PROMPTS, how) and {len(row) for row in found} == {64 - 8}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([97], "token 97, and the model a vocab_size of 97"), ([-1], "token -1"), ([], "prompt is empty"),
        ([1] * 64, "64 tokens leaves no room in 64 positions"),
    ],
)  # fmt: skip
def test_both_refuse_the_same_prompts(models, prompt, message):
    for model, write in zip(models, (generate, generate_by_transformers), strict=True):
        with pytest.raises(ValueError, match=message):
            write(model, [[1], prompt], Sampling(3))
