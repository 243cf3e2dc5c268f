"""Folders and checkpoints: written by us, read by transformers, and back."""

import json
from dataclasses import replace

import pytest
import torch
from llm_core.checkpoints import describe, load_checkpoint, refuse_another_shape
from llm_core.folder import from_pretrained, load_folder, save_folder, save_pretrained
from llm_core.model import GPT, GPTConfig
from llm_data.fast_tokenizer import character_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

CONFIG = GPTConfig(97, hidden_size=64, num_hidden_layers=2, num_key_value_heads=2, rope_theta=5000.0)
CONFIGS = {
    "tied": CONFIG,
    "untied": replace(CONFIG, tie_word_embeddings=False),
    "other eps": replace(CONFIG, rms_norm_eps=1e-3, max_position_embeddings=33, num_key_value_heads=4),
}


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(["def f(x): return x"])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_there_and_back(config, ids, tmp_path, tokenizer):
    ours = GPT(config).eval()
    save_pretrained(ours, tmp_path / "ours", tokenizer)
    for theirs in (
        LlamaForCausalLM.from_pretrained(tmp_path / "ours"), AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    ):  # fmt: skip
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=0, atol=1e-5)
    assert theirs.config.eos_token_id == tokenizer.eos_token_id
    assert theirs.dtype == torch.float32
    theirs.save_pretrained(tmp_path / "theirs")
    back = from_pretrained(tmp_path / "theirs")
    assert back.config == config and not back.training
    assert torch.equal(back(ids).logits, ours(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("def").input_ids == tokenizer("def").input_ids


def test_without_a_tokenizer_no_token_ends_a_text(tmp_path):
    """LlamaConfig's own defaults end a text at token 2, whatever it stands for."""
    save_pretrained(GPT(CONFIG), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("eos_token_id") is None and config.get("bos_token_id") is None


def test_half_precision_stays(tmp_path):
    save_pretrained(GPT(CONFIG).bfloat16(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert from_pretrained(tmp_path, torch.bfloat16).lm_head.weight.dtype == torch.bfloat16
    assert from_pretrained(tmp_path).lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "rotary positions are scaled"),
        ({"head_dim": 32}, "head_dim=32"),
        ({"vocab_size": 50}, "has the shape"),
    ],
)
def test_what_our_model_is_not_is_refused(changes, message, tmp_path):
    save_pretrained(GPT(CONFIG), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_missing_files_and_tensors_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_folder(tmp_path)
    save_pretrained(GPT(CONFIG), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight has the shape None"):
        from_pretrained(tmp_path)


SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2, n_positions=64)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=1, intermediate_size=64)),
    "ours": lambda: GPT(CONFIG),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_model_travels_in_a_folder_and_in_a_checkpoint(name, tmp_path, ids, tokenizer):
    model = OTHERS[name]().eval()
    save_folder(model, tokenizer, tmp_path / "folder")
    loaded, words = load_folder(tmp_path / "folder")
    assert type(loaded) is type(model)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert words("def").input_ids == tokenizer("def").input_ids
    state = {f"model.{key}": values for key, values in model.state_dict().items()}
    torch.save({"state_dict": state, **describe(model, tokenizer)}, tmp_path / "a.ckpt")
    loaded, words = load_checkpoint(tmp_path / "a.ckpt")
    assert type(loaded) is type(model) and not loaded.training
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert words("def f").input_ids == tokenizer("def f").input_ids
    assert (words.eos_token_id, words.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_a_checkpoint_of_another_model_is_refused():
    def checkpoint(model):
        state = {f"model.{key}": values for key, values in model.state_dict().items()}
        return {"state_dict": state, **describe(model, None)}

    saved = checkpoint(GPT(CONFIG))
    refuse_another_shape(saved, GPT(CONFIG))
    refuse_another_shape(saved, GPT(replace(CONFIG, attention_dropout=0.3)))
    with pytest.raises(ValueError, match=r"hidden_size=64 \(here 32\)"):
        refuse_another_shape(saved, GPT(replace(CONFIG, hidden_size=32)))
    with pytest.raises(ValueError, match=r"rope_theta=5000.0 \(here 10.0\)"):  # the shapes are the same
        refuse_another_shape(saved, GPT(replace(CONFIG, rope_theta=10.0)))
    with pytest.raises(ValueError, match="of another model"):
        refuse_another_shape(saved, OTHERS["gpt2"]())


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_text("hello")
    with pytest.raises(ValueError, match="no checkpoint of babygpt"):
        load_checkpoint(tmp_path / "a.ckpt")


def without(name, folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_are_missing_are_never_drawn(tmp_path, tokenizer):
    """transformers fills them with random numbers, and says so in its log alone."""
    save_folder(GPT(CONFIG), tokenizer, tmp_path)
    without("model.layers.1.mlp.up_proj.weight", tmp_path)
    with pytest.raises(ValueError, match=r"weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_folder(tmp_path)


def test_weights_in_several_files(tmp_path, ids):
    ours = GPT(CONFIG).eval()
    save_pretrained(ours, tmp_path / "one")
    LlamaForCausalLM.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert not (tmp_path / "many" / "model.safetensors").exists()
    loaded, _ = load_folder(tmp_path / "many")
    torch.testing.assert_close(loaded(ids).logits, ours(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [0, 1000])
def test_weights_cut_short(tmp_path, size):
    save_pretrained(GPT(CONFIG), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives no causal language model"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "holds no keys"), ("{}", "'vocab_size'"), ('{"vocab_size": "5"}', "json: ")]
)
def test_a_configuration_that_is_none(tmp_path, text, message):
    save_pretrained(GPT(CONFIG), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives no causal language model"):
        load_folder(tmp_path)
