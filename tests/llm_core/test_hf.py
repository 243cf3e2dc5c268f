"""Folders and checkpoints: written by us, read by transformers, and back."""

import copy
import json
import zipfile
from dataclasses import replace

import pytest
import torch
from llm_core.generate import set_stop_ids, stop_ids
from llm_core.model import GPT, GPTConfig
from llm_core.store.checkpoints import describe
from llm_core.store.hf import read_config
from llm_core.store.registry import load_model, save_model
from llm_core.store.resume import refuse_another_shape, refuse_other_states
from llm_data.tokenizers.fast import character_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
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
    save_model(ours, tokenizer, tmp_path / "ours")
    for theirs in (
        LlamaForCausalLM.from_pretrained(tmp_path / "ours"), AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    ):  # fmt: skip
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=0, atol=1e-5)
    assert theirs.config.eos_token_id == tokenizer.eos_token_id
    assert theirs.dtype == torch.float32
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")[0]
    assert back.config == config and not back.training
    assert torch.equal(back(ids).logits, ours(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("def").input_ids == tokenizer("def").input_ids


def test_without_a_tokenizer_no_token_ends_a_text(tmp_path):
    """LlamaConfig's own defaults end a text at token 2, whatever it stands for."""
    save_model(GPT(CONFIG), None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("eos_token_id") is None and config.get("bos_token_id") is None


def test_half_precision_stays(tmp_path):
    save_model(GPT(CONFIG).bfloat16(), None, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert load_model(tmp_path, dtype=torch.bfloat16)[0].lm_head.weight.dtype == torch.bfloat16
    assert load_model(tmp_path)[0].lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"rope_parameters": {"type": "linear", "rope_theta": 1.0, "factor": 2.0}}, "rotary positions are scaled"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary positions are scaled"),
        ({"head_dim": 32}, "head_dim=32"),
    ],
)
def test_what_our_model_is_not_is_refused(changes, message, tmp_path):
    save_model(GPT(CONFIG), None, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_missing_files_and_tensors_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(tmp_path)[0]
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(tmp_path)
    save_model(GPT(CONFIG), None, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"weights lack model\.norm\.weight"):
        load_model(tmp_path)[0]


SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2, n_positions=64)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=1, intermediate_size=64)),
    "ours": lambda: GPT(CONFIG),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_model_travels_in_a_folder_and_in_a_checkpoint(name, tmp_path, ids, tokenizer):
    model = OTHERS[name]().eval()
    save_model(model, tokenizer, tmp_path / "folder")
    loaded, words = load_model(tmp_path / "folder")
    assert type(loaded) is type(model)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert words("def").input_ids == tokenizer("def").input_ids
    state = {f"model.{key}": values for key, values in model.state_dict().items()}
    torch.save({"state_dict": state, **describe(model, tokenizer)}, tmp_path / "a.ckpt")
    loaded, words = load_model(tmp_path / "a.ckpt")
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
        load_model(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_text("hello")
    with pytest.raises(ValueError, match="no checkpoint of babygpt"):
        load_model(tmp_path / "a.ckpt")


def without(name, folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_are_missing_are_never_drawn(tmp_path, tokenizer):
    """transformers fills them with random numbers, and says so in its log alone."""
    save_model(GPT(CONFIG), tokenizer, tmp_path)
    without("model.layers.1.mlp.up_proj.weight", tmp_path)
    with pytest.raises(ValueError, match=r"weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(tmp_path)


def test_weights_in_several_files(tmp_path, ids):
    ours = GPT(CONFIG).eval()
    save_model(ours, None, tmp_path / "one")
    LlamaForCausalLM.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert not (tmp_path / "many" / "model.safetensors").exists()
    loaded, _ = load_model(tmp_path / "many")
    torch.testing.assert_close(loaded(ids).logits, ours(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [0, 1000])
def test_weights_cut_short(tmp_path, size):
    save_model(GPT(CONFIG), None, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"gives no causal language model: .*header"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "", "{", '{"vocab_size": "5"}', '{"model_type": "llama", "vocab_size": "5"}', "\0"]
)
def test_a_configuration_that_is_none(tmp_path, text):
    save_model(GPT(CONFIG), None, tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="gives no causal language model") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


UNTIED = LlamaConfig(
    vocab_size=97, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=32,
    num_key_value_heads=32, max_position_embeddings=2048, tie_word_embeddings=False, initializer_range=0.2,
    eos_token_id=None, bos_token_id=None,
)  # fmt: skip


def saved(folder, config=UNTIED, **changes):
    """A Llama of transformers in a folder, its config.json changed (a key to None is taken out)."""
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if changes.get(key, 0) is not None}))
    return folder


def rewrite(folder, change):
    """Pass the tensors of a folder through `change`, and write what comes out."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def same_as_transformers(folder, ids):
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours, _ = load_model(folder)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=2e-5)
    return ours


ABSENT = [
    ["tie_word_embeddings"], ["num_attention_heads", "num_key_value_heads", "head_dim"], ["num_key_value_heads"],
    ["max_position_embeddings"], ["rms_norm_eps"], ["rope_parameters"], ["head_dim"], ["initializer_range"],
    ["attention_bias", "mlp_bias", "hidden_act", "attention_dropout"], ["architectures", "dtype"],
]  # fmt: skip


@pytest.mark.parametrize("keys", ABSENT, ids="+".join)
def test_an_absent_key_is_what_it_is_to_llama(keys, ids, tmp_path):
    ours = same_as_transformers(saved(tmp_path, **dict.fromkeys(keys)), ids)
    assert isinstance(ours, GPT)
    assert (ours.config.max_position_embeddings, ours.config.tie_word_embeddings) == (2048, False)


FORMS = {
    "rope by its old name": {"rope_parameters": None, "rope_theta": 500.0},
    "rope, type": {"rope_parameters": {"type": "default", "rope_theta": 700.0}},
    "rope, null": {"rope_parameters": None, "rope_scaling": None},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0}},
    "linear by its old names": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "a part of the channels": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    },
    "no head width": {"head_dim": None},
    "gelu": {"hidden_act": "gelu"},
    "a key of another library": {"sliding_window": 3, "quantizer": "none"},
    "several ends": {"eos_token_id": [3, 5]},
    "both sides": {"is_causal": False},
}


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_configurations_as_they_are_found(changes, ids, tmp_path):
    """Ours where it can follow, a model of transformers where not; the same numbers both times."""
    same_as_transformers(saved(tmp_path, **changes), ids)


def prefixed(tensors):
    return {name.removeprefix("model."): values for name, values in tensors.items()}


def with_frequencies(tensors):
    return {**tensors, **{f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.rand(2) for n in range(2)}}


def with_both_heads(tensors):
    return {**tensors, "lm_head.weight": 0.1 * torch.randn(97, 128)}


@pytest.mark.parametrize("change", [prefixed, with_frequencies, with_both_heads], ids=lambda change: change.__name__)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_as_they_are_found(change, tied, ids, tmp_path):
    """Without `model.`, with the buffers of old conversions, with a head of its own beside `tie_word_embeddings`."""
    config = copy.deepcopy(UNTIED)
    config.tie_word_embeddings = tied
    rewrite(saved(tmp_path, config), change)
    if change is prefixed and not tied:  # the head has no prefix, and keeps its name
        same_as_transformers(tmp_path, ids)
    ours = same_as_transformers(tmp_path, ids)
    assert ours.config.tie_word_embeddings == (tied and change is not with_both_heads)
    save_model(ours, None, tmp_path / "again")
    assert torch.equal(load_model(tmp_path / "again")[0](ids).logits, ours(ids).logits)


def test_weights_as_torch_saves_them(ids, tmp_path):
    saved(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert isinstance(same_as_transformers(tmp_path, ids), GPT)


class Payload:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_is_not_run(tmp_path, capsys):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="gives no causal language model"):
        load_model(tmp_path)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_neither_run_nor_asked_about(where, tmp_path, tokenizer, monkeypatch):
    save_model(GPT(CONFIG), tokenizer, tmp_path)
    proof = tmp_path / "proof"
    (tmp_path / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass C: pass\nM = T = C\n")
    maps = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    for name, values in (("config.json", {"model_type": "evil"}), (where, {"auto_map": maps, "tokenizer_class": "T"})):
        path = tmp_path / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it was asked about"))
    for transformers in (False, True):
        with pytest.raises(ValueError, match="gives no causal language model"):
            load_model(tmp_path, transformers=transformers)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 10**9}, r"has the shape \(.*\), and its config.json makes it"),
        ({"num_hidden_layers": 10**9}, "has 1,000,000,000 layers, and its weights 21 tensors"),
        ({"hidden_size": 128.0}, "hidden_size"), ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"), ({"rope_parameters": "abc"}, "rope_parameters"),
    ],
    ids=str,
)  # fmt: skip
def test_a_size_that_cannot_be_takes_no_memory(changes, message, tmp_path):
    saved(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rms_norm_eps", float("nan")), ("rms_norm_eps", -1.0), ("rope_theta", 0), ("rope_theta", float("inf")),
     ("initializer_range", -0.5), ("vocab_size", True)],
)  # fmt: skip
def test_a_value_that_is_none_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"{key}={value!r} must be"):
        replace(CONFIG, **{key: value})


REFUSED = {
    "quantised": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "are quantised"),
    "a kernel of the hub": ({"attn_implementation": "some/kernel"}, "is code from the hub"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_is_refused_by_name(changes, message, tmp_path):
    saved(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_what_else_lies_in_a_folder_does_not_matter(ids, tmp_path):
    saved(tmp_path)
    save_file({"model.embed_tokens.weight": torch.zeros(7, 7)}, tmp_path / "before.safetensors")
    same_as_transformers(tmp_path, ids)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="it is an adapter; merge it"):
        load_model(tmp_path)


def test_two_matrices_that_were_apart_stay_apart_in_a_checkpoint(ids, tmp_path):
    rewrite(saved(tmp_path, copy.deepcopy(UNTIED), tie_word_embeddings=True), with_both_heads)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    state = {f"model.{key}": values for key, values in theirs.state_dict().items()}
    torch.save({"state_dict": state, **describe(theirs, None)}, tmp_path / "a.ckpt")
    assert torch.equal(load_model(tmp_path / "a.ckpt")[0](ids).logits, theirs(ids).logits)


def test_a_checkpoint_of_a_model_with_other_numbers_is_refused():
    """Of the same shapes: the rotary base and the like leave no trace in the weights."""
    llama = LlamaForCausalLM(UNTIED)
    other = copy.deepcopy(UNTIED)
    other.rms_norm_eps = 0.1
    state = {f"model.{key}": values for key, values in llama.state_dict().items()}
    checkpoint = {"state_dict": state, **describe(llama, None)}
    refuse_another_shape(checkpoint, LlamaForCausalLM(copy.deepcopy(UNTIED)))
    with pytest.raises(ValueError, match=r"rms_norm_eps=1e-06 \(here 0\.1\)"):
        refuse_another_shape(checkpoint, LlamaForCausalLM(other))


def test_an_optimisers_state_of_another_shape_is_refused():
    """A fused step would read and write beyond it."""
    model = GPT(CONFIG)
    parameters = list(model.parameters())
    states = {
        place: {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(each)} for place, each in enumerate(parameters)
    }
    groups = [{"params": parameters}]
    refuse_other_states({"optimizer_states": [{"state": states}]}, groups)
    for wrong in (torch.zeros(3), torch.zeros(0), parameters[1].detach()):
        broken = {**states, 0: {**states[0], "exp_avg": wrong}}
        with pytest.raises(ValueError, match="state exp_avg of parameter 0 does not fit"):
            refuse_other_states({"optimizer_states": [{"state": broken}]}, groups)
    with pytest.raises(ValueError, match="of parameter 99 does not fit"):
        refuse_other_states({"optimizer_states": [{"state": {99: states[0]}}]}, groups)


def test_a_chat_template_travels_in_a_checkpoint(tmp_path, tokenizer):
    words = copy.deepcopy(tokenizer)
    words.chat_template = "{{ messages }}"
    assert load_model(checkpoint_file(tmp_path / "a.ckpt", words))[1].chat_template == "{{ messages }}"


def test_the_ends_of_a_chat_model_travel(tmp_path, tokenizer):
    """A second stop token stands in `generation_config.json` alone."""
    saved(tmp_path / "llama", vocab_size=97)
    tokenizer.save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    model, words = load_model(tmp_path / "llama")
    assert isinstance(model, GPT) and stop_ids(model) == (7, 9)
    save_model(model, words, tmp_path / "again")
    assert stop_ids(load_model(tmp_path / "again")[0]) == (7, 9)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "again").generation_config.eos_token_id == [7, 9]
    for kept in (model, OTHERS["gpt2"]()):
        set_stop_ids(kept, (7, 9))
        state = {f"model.{key}": values for key, values in kept.state_dict().items()}
        torch.save({"state_dict": state, **describe(kept, words)}, tmp_path / "a.ckpt")
        assert stop_ids(load_model(tmp_path / "a.ckpt")[0]) == (7, 9)


@pytest.mark.parametrize("ends", ['"0"', "[[0]]", '["0"]', "1.5", "true", "10000000000000000000000000000000"])
def test_ends_that_are_no_tokens(ends, tmp_path, tokenizer):
    saved(tmp_path / "llama", vocab_size=97)
    tokenizer.save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
    with pytest.raises(ValueError, match=r"eos_token_id=.* is no token, nor a list of tokens"):
        stop_ids(load_model(tmp_path / "llama")[0])


def checkpoint_file(path, words, **changes):
    model = GPT(CONFIG)
    state = {f"model.{key}": values for key, values in model.state_dict().items()}
    torch.save({"state_dict": state, **describe(model, words), **changes}, path)
    return path


def test_a_flipped_bit_is_found(tmp_path, tokenizer):
    path = checkpoint_file(tmp_path / "a.ckpt", tokenizer)
    whole = path.read_bytes()
    load_model(path)
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda each: each.file_size)
        start = whole.find(file.read(largest))
    for place in (start, start + largest.file_size // 2, start + largest.file_size - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=f"a.ckpt is damaged .{largest.filename} is not what was written"):
            load_model(path)


ODD = {
    "tokenizer a number": {"tokenizer": 5},
    "tokenizer of no json": {"tokenizer": {"json": 5, "special": {}}},
    "tokenizer of other json": {"tokenizer": {"json": "{}", "special": {}}},
    "no configuration": {"gpt_config": 3},
    "a text for a size": {"gpt_config": {"vocab_size": "97"}},
    "unknown size": {"gpt_config": {"vocab_size": 97, "depth": 3}},
    "a size that cannot be": {"gpt_config": {"vocab_size": 10**12}},
    "layers without end": {"gpt_config": {"vocab_size": 97, "num_hidden_layers": 10**9}},
    "weights that are none": {"state_dict": {"model.x": "y"}},
    "weights of one number": {"state_dict": {"model.x": torch.zeros(1).expand(10**12)}},
    "a model of another kind": {
        "gpt_config": None,
        "hf_config": {"model_type": "t5", "auto_map": {"AutoConfig": "e.C"}},
    },
    "no model": {"gpt_config": None, "hf_config": {"model_type": "no such"}},
}


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD)
def test_an_odd_part_of_a_checkpoint_is_one_line(changes, tmp_path, tokenizer):
    path = checkpoint_file(tmp_path / "a.ckpt", tokenizer, **changes)
    with pytest.raises(ValueError, match=r"a\.ckpt is no checkpoint of babygpt \(") as caught:
        load_model(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
