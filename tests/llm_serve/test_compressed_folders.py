"""Folders in compressed-tensors' format: what transformers loads from ours, and what we load from its."""

from __future__ import annotations

import json
import re
import stat

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from llm_core import load_model
from llm_core.generate import stop_ids
from llm_data.tokenizers.fast import train_fast_tokenizer
from llm_serve.quantization.apply import quantize
from llm_serve.quantization.export import load_quantized, save_quantized
from llm_serve.quantization.formats import from_config, ignored, to_config
from llm_serve.quantization.fp8 import Fp8Scheme
from llm_serve.quantization.rounding import WeightScheme
from llm_serve.quantization.smooth import Int8Scheme
from quantized_models import IDS, gpt, llama, qwen
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from transformers.utils import logging

INTEGERS = {
    "int4 of groups": ("gptq", WeightScheme(4, group_size=32, actorder=True)),
    "int4 of rows": ("rtn", WeightScheme(4, group_size=None)),
    "int3": ("awq", WeightScheme(3, group_size=16)),
    "int8": ("rtn", WeightScheme(8, group_size=None)),
    "int4 with zero points": ("rtn", WeightScheme(4, False, 32)),
}
EIGHTS = {
    "fp8": ("fp8", Fp8Scheme()),
    "fp8 with one scale": ("fp8", Fp8Scheme("tensor", "tensor")),
    "fp8 of weights alone": ("fp8", Fp8Scheme("channel", None)),
    "int8 of both": ("smoothquant", Int8Scheme()),
}
ALL = INTEGERS | EIGHTS


def theirs(folder, **options):
    """transformers' reading of a folder, without its progress bars."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options).eval()


@pytest.mark.filterwarnings("ignore:.*quantization_config.*")
@pytest.mark.parametrize("name", ALL)
def test_transformers_has_the_same_weights_and_logits(name, tmp_path):
    """Difference 0: of the weights for every model, of the logits where the layers are transformers' on both sides."""
    method, scheme = ALL[name]
    for build in (gpt, llama):
        done = quantize(build(), method, scheme, IDS).model
        save_quantized(done, None, tmp_path / build.__name__)
        # compressed-tensors 0.20 prepares no packed zero points for a file to be loaded into: written out they load.
        written = getattr(scheme, "symmetric", True) is False
        options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if written else {}
        loaded = theirs(tmp_path / build.__name__, **options)
        logits = loaded(IDS).logits  # a packed layer is written out at its first call
        for path, layer in done.model.layers.named_modules():
            if hasattr(layer, "weight_scale"):
                assert torch.equal(loaded.model.layers.get_submodule(path).weight, layer.dequantize()), path
        if build is llama and name != "int8 of both":
            assert torch.equal(logits, done(IDS).logits)
        # Ours adds integers: an activation that lies between two goes the other way, and moves those after it.
        far = 0.02 if name == "int8 of both" else 1e-5
        assert (logits - done(IDS).logits).norm() < far * logits.norm()


@pytest.mark.parametrize("name", ALL)
def test_the_tensors_are_those_of_the_librarys_compressor(name, tmp_path):
    method, scheme = ALL[name]
    model = llama()
    done = quantize(model, method, scheme, IDS).model
    save_quantized(done, None, tmp_path / "x")
    settings = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]
    found = load_file(tmp_path / "x" / "model.safetensors")
    form = QuantizationScheme.model_validate(
        settings["config_groups"]["group_0"]
    )  # refuses a word that it does not know
    path = "model.layers.1.mlp.down_proj"
    layer = done.get_submodule(path)
    state = {"weight": layer.dequantize(), "weight_scale": layer.weight_scale}
    if getattr(layer, "weight_zero_point", None) is not None:
        state["weight_zero_point"] = layer.quantized.grid.zero_point
    packed = BaseCompressor.load_from_registry(settings["format"]).compress(state, form)
    ours = {name.removeprefix(f"{path}."): values for name, values in found.items() if name.startswith(f"{path}.")}
    ours.pop("input_scale", None)
    assert ours.keys() == {name for name, values in packed.items() if values is not None}
    for part, values in ours.items():
        assert values.dtype == packed[part].dtype and torch.equal(values.float(), packed[part].float()), part


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tied", [True, False])
def test_ours_come_back(name, tied, tmp_path):
    method, scheme = ALL[name]
    for build in (gpt, qwen):
        done = quantize(build(tie_word_embeddings=tied), method, scheme, IDS).model
        save_quantized(done, None, tmp_path / build.__name__)
        loaded, tokenizer = load_quantized(tmp_path / build.__name__)
        assert tokenizer is None and type(loaded) is type(done) and not loaded.training
        state = loaded.state_dict()
        assert state.keys() == done.state_dict().keys()
        for part, values in done.state_dict().items():
            assert state[part].dtype == values.dtype and torch.equal(state[part].float(), values.float()), part
        assert torch.equal(loaded(IDS).logits, done(IDS).logits)
        embedding = loaded.get_submodule("model.embed_tokens")
        assert (loaded.lm_head.weight is embedding.weight) == tied == loaded.config.tie_word_embeddings


def test_what_belongs_to_a_model_comes_along(tmp_path):
    model, tokenizer = gpt(), train_fast_tokenizer(["one two three"] * 30, 300)
    model.stop_ids = (3, 5)
    done = quantize(model, "rtn", WeightScheme(group_size=32)).model
    save_quantized(done, tokenizer, tmp_path / "a" / "b")
    loaded, again = load_quantized(tmp_path / "a" / "b")
    assert again("two three").input_ids == tokenizer("two three").input_ids and stop_ids(loaded) == (3, 5)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b"]
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o755
    assert "lm_head.weight" not in load_file(tmp_path / "a" / "b" / "model.safetensors")
    settings = json.loads((tmp_path / "a" / "b" / "config.json").read_text())["quantization_config"]
    assert settings["ignore"] == ["lm_head"]
    with pytest.raises(ValueError, match="is not empty"):
        save_quantized(done, None, tmp_path / "a" / "b")
    with pytest.raises(ValueError, match="weights are quantised"):  # llm_core says so, and does not load something else
        load_model(tmp_path / "a" / "b")
    half = quantize(gpt().bfloat16(), "rtn", WeightScheme(group_size=32)).model
    save_quantized(half, None, tmp_path / "half")
    assert torch.equal(load_quantized(tmp_path / "half")[0](IDS).logits, half(IDS).logits)


def test_layers_that_are_left_out(tmp_path):
    done = quantize(llama(), "rtn", WeightScheme(group_size=32), target_modules=("q_proj", "up_proj")).model
    save_quantized(done, None, tmp_path / "x")
    settings = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.mlp.down_proj" in settings["ignore"] and len(settings["ignore"]) == 16
    torch.testing.assert_close(
        load_quantized(tmp_path / "x")[0](IDS).logits, theirs(tmp_path / "x")(IDS).logits, rtol=1e-4, atol=1e-4
    )
    before = load_quantized(tmp_path / "x")[0](IDS).logits
    patterns = ["re:.*mlp.(down|gate)_proj$", "re:.*(k|v|o)_proj", "lm_head"]
    for name in settings["ignore"]:
        assert ignored(name, patterns), name
    assert not ignored("model.layers.0.self_attn.q_proj", patterns)
    assert ignored(
        "model.layers.0.self_attn.q_proj", [r"re:model\.layers\.0"]
    )  # a pattern may end before the name does
    path = tmp_path / "x" / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "quantization_config": {**settings, "ignore": patterns}})
    )
    assert torch.equal(load_quantized(tmp_path / "x")[0](IDS).logits, before)


def test_nothing_is_left_of_a_folder_that_fails(tmp_path, monkeypatch):
    done = quantize(gpt(), "rtn", WeightScheme(group_size=32)).model
    monkeypatch.setattr("llm_serve.quantization.export.sync", lambda path: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        save_quantized(done, None, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_models_that_have_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="layers of 0 schemes"):
        save_quantized(gpt(), None, tmp_path / "x")
    with pytest.raises(ValueError, match=r"q_proj is in NF4, which .* take rtn, gptq or awq"):
        save_quantized(quantize(gpt(), "nf4").model, None, tmp_path / "x")
    mixed = quantize(gpt(), "rtn", WeightScheme(group_size=32), target_modules=("q_proj",)).model
    mixed = quantize(mixed, "rtn", WeightScheme(8, group_size=32), target_modules=("up_proj",)).model
    with pytest.raises(ValueError, match="layers of 2 schemes"):
        save_quantized(mixed, None, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


SCHEMES = [scheme for _, scheme in ALL.values()]


@pytest.mark.parametrize("scheme", SCHEMES, ids=list(ALL))
def test_settings_there_and_back(scheme):
    settings = to_config(scheme, ["lm_head"])
    found = from_config(json.loads(json.dumps(settings)))
    assert found == (Int8Scheme(None) if isinstance(scheme, Int8Scheme) else scheme)
    # As llm-compressor writes them: more words, and defaults left out.
    (group,) = settings["config_groups"].values()
    group["weights"] |= {"observer": "minmax", "observer_kwargs": {}, "zp_dtype": None, "block_structure": None}
    group.pop("output_activations")
    settings |= {"version": "0.20.0", "sparsity_config": {}, "transform_config": {}}
    assert from_config(settings) == found
    for part in (group["weights"], group["input_activations"] or {}):
        for key, default in (("symmetric", True), ("dynamic", False)):
            if part.get(key) == default:
                del part[key]
    assert from_config(settings) == found


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("format", "nvfp4-pack-quantized", "format 'nvfp4-pack-quantized' with weights of 4 bits, int, group"),
        ("quant_method", "gptq", "quant_method='gptq': only 'compressed-tensors' is read here"),
        ("quantization_status", "frozen", "quantization_status='frozen'"),
        ("kv_cache_scheme", {"num_bits": 8}, "kv_cache_scheme={'num_bits': 8}"),
        ("sparsity_config", {"format": "sparse-24"}, "sparsity_config="),
        ("transform_config", {"config_groups": 1}, "transform_config="),
        ("future", 1, "future=1: this key is not known"),
        ("config_groups", {}, "config_groups has 0 groups"),
        ("group.targets", ["re:.*q_proj"], "targets=['re:.*q_proj']: only ['Linear']"),
        ("group.output_activations", {"num_bits": 8}, "output_activations="),
        ("group.input_activations", {"num_bits": 8, "strategy": "tensor"}, "with weights of 4 bits, int, group, activ"),
        ("group.weights.actorder", "group", "weights.actorder='group': only None, False, 'weight', 'static'"),
        ("group.weights.block_structure", [8, 8], "weights.block_structure=[8, 8]"),
        ("group.weights.strategy", "block", "weights of 4 bits, int, block"),
        ("group.weights.type", "float", "weights of 4 bits, float, group"),
        ("group.weights.dynamic", True, "weights.dynamic=True"),
        ("group.weights.num_bits", 1, "bits=1: integers of 2 to 8 bits"),
    ],
)  # fmt: skip
def test_settings_that_are_refused_by_name(place, value, said, tmp_path):
    settings = to_config(WeightScheme(group_size=32), ["lm_head"])
    *path, key = place.replace("group.", "config_groups.group_0.").split(".")
    where = settings
    for each in path:
        where = where[each]
    where[key] = value
    if place == "format":
        del settings["config_groups"]["group_0"]["format"]
    with pytest.raises(ValueError, match=re.escape(said)):
        from_config(settings)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}: "):
        load_quantized(tmp_path)


def test_folders_that_are_damaged(tmp_path):
    folder = tmp_path / "x"
    save_quantized(quantize(gpt(), "rtn", WeightScheme(group_size=32)).model, None, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, settings = load_file(weights), json.loads(config.read_text())
    some = "model.layers.0.mlp.up_proj.weight_packed"

    def refused(said: str, state: dict) -> None:
        save_file(state, weights, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=said):
            load_quantized(folder)

    refused("weights lack .*up_proj.weight_packed", {name: each for name, each in whole.items() if name != some})
    settings["tie_word_embeddings"] = False
    config.write_text(json.dumps(settings))
    refused("weights lack lm_head.weight", whole)
    settings["tie_word_embeddings"] = True
    config.write_text(json.dumps(settings))
    refused("have an unknown extra", {**whole, "extra": torch.ones(1)})
    refused(r"up_proj.weight_packed is \(96, 7\) of torch.int32", {**whole, some: whole[some][:, :7].contiguous()})
    refused("of torch.int64, and its config.json makes it", {**whole, some: whole[some].long()})
    shape = some.replace("packed", "shape")
    refused("weight_shape is", {**whole, shape: torch.tensor([96, 32])})
    weights.write_bytes(b"\x20" * 100)
    with pytest.raises(ValueError, match="cannot be read"):
        load_quantized(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"no model.safetensors"):
        load_quantized(folder)
    save_file(whole, weights, metadata={"format": "pt"})
    settings["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 48
    config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="group_size=48 does not divide a row of 64"):
        load_quantized(folder)
    del settings["quantization_config"]
    config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="not quantised; load it with llm_core's load_model"):
        load_quantized(folder)
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        load_quantized(tmp_path)


def test_a_folder_of_several_files(tmp_path):
    done = quantize(gpt(), "rtn", WeightScheme(group_size=32)).model
    save_quantized(done, None, tmp_path / "x")
    whole = load_file(tmp_path / "x" / "model.safetensors")
    (tmp_path / "x" / "model.safetensors").unlink()
    names = sorted(whole)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: whole[name] for name in part}, tmp_path / "x" / f"model-0000{number}-of-00002.safetensors")
    assert torch.equal(load_quantized(tmp_path / "x")[0](IDS).logits, done(IDS).logits)
    assert isinstance(done.lm_head, nn.Linear)
