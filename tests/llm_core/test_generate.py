"""Draws and their filters against transformers'."""

import re
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_core.generate import Sampling, adjust, encode_prompt, generate, generate_by_transformers, sample_texts
from llm_core.model import GPT, GPTConfig, KeyValueCache
from llm_core.store.registry import load_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    pipeline,
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
        ({"repetition_penalty": float("inf")}, "repetition_penalty=inf"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": float("nan")}, "top_p=nan"),
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
    from llm_data.tokenizers.fast import character_tokenizer

    tokenizer = character_tokenizer(["abc"])
    given = []
    module = sys.modules["llm_core.generate"]
    monkeypatch.setattr(module, "generate", lambda model, ids, how, pad: given.append(how) or [[0]])
    sample_texts(GPT(GPTConfig(len(tokenizer), hidden_size=32)), tokenizer, ["a"], Sampling(stop_ids=(1,)))
    assert given[0].stop_ids == (1, tokenizer.eos_token_id)


def test_texts(models):
    from llm_data.tokenizers.fast import character_tokenizer

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


def words_of(number, template=None):
    """A tokenizer of w0, w1 ... with `<bos>`, `<eos>` and `<turn>` behind them."""
    raw = Tokenizer(WordLevel({f"w{n}": n for n in range(number)}, unk_token="w0"))
    raw.pre_tokenizer = WhitespaceSplit()
    raw.add_special_tokens(["<bos>", "<eos>", "<turn>"])
    if template:
        raw.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<bos>", number), ("<eos>", number + 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")


def llama_folder(folder, words, vocab_size, ends):
    """Saved with the stop tokens in `generation_config.json`, which also asks for what nobody asked `Sampling` for."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3, max_position_embeddings=64, bos_token_id=words.bos_token_id, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = list(ends)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model


def spelled(text):
    return re.findall(r"w\d+", text)


@pytest.mark.parametrize("template", [None, "<bos> $A", "<bos> <bos> $A"])
def test_texts_begin_and_end_as_in_transformers_own_pipeline(template, tmp_path):
    """With the begin-of-text token that a tokenizer puts before a text, and at each of several stop tokens."""
    words = words_of(60, template)
    turn = words.convert_tokens_to_ids("<turn>")
    llama_folder(tmp_path, words, 63, [words.eos_token_id, turn])
    model, loaded = load_model(tmp_path)
    theirs = pipeline("text-generation", model=str(tmp_path), tokenizer=str(tmp_path))
    ended = 0
    for prompt in [f"w{n} w{n * 7 % 60}" for n in range(1, 30)]:
        (expected,) = theirs(prompt, max_new_tokens=8, do_sample=False)
        found = sample_texts(model, loaded, [prompt], Sampling(8, temperature=0))[0]
        assert spelled(found) == spelled(expected["generated_text"])
        ended += len(spelled(found)) < 10
    assert 0 < ended < 29  # some stopped early, some did not


def test_what_a_tokenizer_puts_behind_a_text_does_not_end_the_prompt():
    words = words_of(20, "<bos> $A <eos>")
    assert words("w3").input_ids == [20, 3, 21]
    assert encode_prompt(words, "w3") == [20, 3]
    assert encode_prompt(words, "") == [20]  # a beginning, where there is such a token
    assert encode_prompt(words_of(20), "") == []


def test_a_row_of_the_vocabulary_without_a_token_is_never_written(tmp_path):
    """Models pad their vocabularies to a round number: 80 rows here, 63 tokens."""
    words = words_of(60)
    llama_folder(tmp_path, words, 80, [61])
    model, loaded = load_model(tmp_path)
    with torch.no_grad():  # the rows beyond are the likeliest
        model.lm_head.weight[63:] = 50 * model.lm_head.weight[:17].abs()
    for kind in (model, LlamaForCausalLM.from_pretrained(tmp_path)):
        with torch.no_grad():
            kind.lm_head.weight.copy_(model.lm_head.weight)
        for temperature in (0, 1.0):
            (text,) = sample_texts(kind, loaded, ["w5"], Sampling(20, temperature=temperature))
            assert len(text.split()) > 1 and set(text.split()) <= {f"w{n}" for n in range(60)}


def test_a_letter_that_a_vocabulary_does_not_have_is_named():
    from llm_data.tokenizers.fast import character_tokenizer

    tokenizer = character_tokenizer(["to be or not"])
    model = GPT(GPTConfig(len(tokenizer), hidden_size=32)).eval()
    for prompt, place, letter in (("to be?", 5, "?"), ("é", 0, "é")):
        with pytest.raises(ValueError, match=rf"character {place} of the prompt, '\{letter}', is not in the model's"):
            sample_texts(model, tokenizer, ["to", prompt], Sampling(3))
    with pytest.raises(ValueError, match="lone surrogate"):
        sample_texts(model, tokenizer, ["to\udcff"], Sampling(3))
    with pytest.raises(ValueError, match="a prompt is empty"):
        sample_texts(model, tokenizer, [""], Sampling(3))


def test_a_model_without_a_last_position_writes_as_much_as_is_asked_for():
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=2, eos_token_id=None)).eval()
    found = generate_by_transformers(bloom, [[5, 6, 7]], Sampling(30, temperature=0))
    assert len(found[0]) == 30


def test_the_cost_of_a_token_does_not_grow_with_the_square_of_the_text(models):
    """What is made anew for each token: at most so many numbers, with 20 and with 40 positions before."""
    ours, _ = models

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in weights:
                self.most = max(self.most, out.numel())
            return out

    weights = {parameter.untyped_storage().data_ptr() for parameter in ours.parameters()}
    sizes = []
    for length in (10, 50):
        cache = KeyValueCache()
        ours(torch.ones(1, length, dtype=torch.long), cache=cache)
        with Largest() as counted, torch.no_grad():
            ours(torch.ones(1, 1, dtype=torch.long), attention_mask=torch.ones(1, length + 1).long(), cache=cache)
        sizes.append(counted.most)
    # The cache is the largest: keys of one layer, 2 heads of 16 numbers a position.
    assert sizes[1] <= 51 * 2 * 16 + 600
