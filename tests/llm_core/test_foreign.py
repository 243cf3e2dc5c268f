"""Every causal family that transformers builds in a moment: as transformers has it, or refused by name."""

import pytest
import torch
import zoo
from llm_core.babygpt import BabyGPT
from llm_core.families.encoders import Encoder
from llm_core.foreign import max_positions, vocab_rows
from llm_core.generate import Sampling, generate, generate_by_transformers, stop_ids
from llm_core.model import GPT, GPTConfig
from llm_core.store.registry import load_model
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
)

FIRST, SECOND = 9, 11
# Families that must be in the zoo, or it could shrink to nothing without a word.
ALWAYS = """
    llama mistral mixtral qwen2 qwen3 qwen3_moe gemma gemma2 phi phi3 gpt2 gpt_neox gptj gpt_bigcode codegen falcon
    bloom opt mpt stablelm starcoder2 olmo olmo2 cohere granite glm gpt_oss smollm3 mamba rwkv xglm biogpt bart bert
    roberta electra xlnet openai-gpt nanochat
"""


@pytest.fixture(scope="module")
def rows():
    ids = torch.randint(3, zoo.VOCAB, (1, FIRST + SECOND), generator=torch.Generator().manual_seed(5))
    return ids, torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None]


def refused(model, message, *, chunk=0, **inputs):
    """Whether `BabyGPT` refuses such a row of this model, in one line that names its class; else its sum of losses."""
    batch = {"labels": inputs["input_ids"], **inputs}
    try:
        return False, BabyGPT(model, loss_chunk=chunk).eval().loss(batch)[0].detach()
    except ValueError as error:
        assert type(model).__name__ in str(error) and "\n" not in str(error)
        assert any(part in str(error) for part in message), error
        return True, None


def far(one, other):
    return (one - other).abs().max() > 1e-4 * one.abs().max()


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_family_is_as_transformers_has_it_or_refused(family, rows, tmp_path):
    model = zoo.build(family)
    if model is None:  # not of these sizes
        assert family not in ALWAYS.split()
        return
    ids, positions = rows
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        alone = model(ids[:, FIRST:], use_cache=False).logits
        cut = model(ids[:, :-1], use_cache=False).logits

    model.save_pretrained(tmp_path)
    loaded, tokenizer = load_model(tmp_path)
    assert tokenizer is None
    with torch.no_grad():
        again = loaded(ids, **({} if isinstance(loaded, GPT) else {"use_cache": False})).logits
    assert not far(whole, again)
    assert set(stop_ids(loaded)) == set(stop_ids(model))

    ahead = far(whole[:, :-1], cut)
    declined, loss = refused(model, ["looks at later tokens"], input_ids=ids)
    assert declined == ahead
    if ahead:
        return
    expected = torch.nn.functional.cross_entropy(whole[0, :-1].float(), ids[0, 1:], reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)

    declined, chunked = refused(model, ["model.loss_chunk to 0"], chunk=7, input_ids=ids)
    if not declined:
        torch.testing.assert_close(chunked, expected, rtol=1e-4, atol=1e-3)

    declined, _ = refused(model, ["take data.packing"], input_ids=ids, position_ids=positions)
    if not declined:
        with torch.no_grad():
            packed = BabyGPT(model).eval()(ids, position_ids=positions)[:, FIRST:]
        assert not far(alone, packed)


def test_a_trained_encoder_is_no_language_model():
    ids = torch.arange(3, 19)[None]
    declined, _ = refused(Encoder(GPTConfig(60, hidden_size=32, num_hidden_layers=2)), ["later tokens"], input_ids=ids)
    assert declined
    assert not refused(GPT(GPTConfig(60, hidden_size=32, num_hidden_layers=2)), [], input_ids=ids)[0]


def test_a_question_leaves_the_model_as_it_was():
    """Its mode, its gradients and the random numbers that training draws."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64)).train()
    model.transformer.h[1].eval()
    modes, state = [part.training for part in model.modules()], torch.get_rng_state()
    module = BabyGPT(model)
    for part, mode in zip(model.modules(), modes, strict=True):
        part.training = mode
    module._asked(model, packed=True, chunked=True)
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_too_small_to_show_it_do_not_hide_a_softcap():
    """New weights give logits of a thousandth: a cap at 30 is then nothing that a loss would show."""
    config = Gemma2Config(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=2, initializer_range=1e-4)  # fmt: skip
    ids = torch.arange(3, 19)[None]
    assert refused(Gemma2ForCausalLM(config), ["scales, caps or shifts"], chunk=4, input_ids=ids)[0]


def test_sizes_that_a_configuration_does_not_tell_at_its_top():
    assert max_positions(BloomConfig()) is None
    assert max_positions(MptConfig(max_seq_len=77)) == 77
    assert max_positions(GPT2Config(n_positions=55)) == 55
    assert vocab_rows(GPT(GPTConfig(61))) == 61


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mistral", "gemma2", "rwkv"])
def test_generation_is_transformers_own_whatever_its_configuration_says(family):
    """`generation_config.json` of a chat model asks for sampling, penalties and lengths; `Sampling` asks for none."""
    model = zoo.build(family)
    prompts = [[5, 6, 7], [9]]
    expected = [
        model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0)
        for prompt in prompts
    ]
    told = {"do_sample": True, "temperature": 0.1, "top_k": 3, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1,
            "min_new_tokens": 5, "suppress_tokens": [7, 8], "num_beams": 2, "max_length": 5}  # fmt: skip
    for key, value in told.items():
        setattr(model.generation_config, key, value)
    how = Sampling(6, temperature=0)
    found = [generate_by_transformers(model, [prompt], how)[0] for prompt in prompts]
    assert found == [row[0, len(prompt) :].tolist() for row, prompt in zip(expected, prompts, strict=True)]
    assert model.generation_config.num_beams == 2
    model.generation_config.eos_token_id = [2, 11]
    assert stop_ids(model) == (2, 11)


def test_a_row_without_a_token_is_never_drawn():
    torch.manual_seed(0)
    model = GPT(GPTConfig(60, hidden_size=32, num_hidden_layers=1)).eval()
    never = tuple(range(10, 60))
    for temperature in (0, 5.0):
        how = Sampling(30, temperature=temperature, suppress_tokens=never)
        assert set(generate(model, [[1, 2]], how)[0]) <= set(range(10))


@pytest.mark.parametrize("rows", [2, 3, 15, 16, 17])
def test_a_small_vocabulary_hides_no_encoder(rows):
    model = BertLMHeadModel(BertConfig(vocab_size=rows, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                       intermediate_size=48, pad_token_id=0)).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    assert refused(model, ["later tokens"], input_ids=torch.ones(1, 8, dtype=torch.long))[0]


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_hang_on_the_length_of_a_row_are_not_packed(kind, rows):
    """A few tokens do not show it: the turning begins beyond the length of the pretraining."""
    model = zoo.build("llama")
    model.config.rope_parameters = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4}
    ids, positions = rows
    assert refused(model, ["by the length of the whole row"], input_ids=ids, position_ids=positions)[0]
    assert not refused(model, [], input_ids=ids)[0]


def test_a_text_does_not_hang_on_the_prompts_beside_it():
    """Bart's decoder takes padding on the left for tokens."""
    model = zoo.build("bart")
    how, prompts = Sampling(6, temperature=0), [[5, 6, 7, 8, 9], [11], [12, 13], [14]]
    assert generate_by_transformers(model, prompts, how) == [
        generate_by_transformers(model, [prompt], how)[0] for prompt in prompts
    ]
