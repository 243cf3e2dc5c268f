"""Our adapters are peft's: outputs, gradients, 20 steps, merged weights, and files both ways."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_peft.lora.bank import AdapterBank
from llm_peft.lora.base import fingerprint_of_folder, fingerprint_of_model
from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.files import beside_own_weights, load_adapter, read_adapter, save_adapter, write_adapter
from llm_peft.lora.inject import adapter_state, adapters, find_targets, inject, shapes
from llm_peft.lora.layer import LoRALinear
from llm_peft.lora.merging import merge_, merged, unmerge_
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from small_llama import llama
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

VARIANTS = [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_dropout": 0.1}, {"init_lora_weights": "pissa"}]
IDS = torch.arange(64).view(2, 32) % 50


def both(model: nn.Module, **options):
    """The same adapter by us and by peft, on copies of a model."""
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    names = inject(ours, LoRAConfig(r=4, lora_alpha=6, **options))
    theirs = inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, target_modules=names, **options), theirs)
    parts = dict(theirs.named_parameters())
    state = adapter_state(ours)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in state.items():
            if name.endswith("lora_B") and "init_lora_weights" not in options:
                values.copy_(torch.randn(values.shape, generator=generator) / 10)
            if not name.endswith("vector"):
                parts[f"{name}.default.weight"].copy_(values)
    return ours, theirs, {name: parts[f"{name}.default.weight"] for name in state}


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, values) for name, values in model.named_parameters() if values.requires_grad]


@pytest.mark.parametrize("options", VARIANTS)
def test_twenty_steps_are_pefts(options):
    ours, theirs, parts = both(llama(), **options)
    losses: dict[str, list[float]] = {}
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    for name, model in (("ours", ours.train()), ("theirs", theirs.train())):
        optimizer = torch.optim.AdamW([values for _, values in trained(model)], lr=1e-3)
        losses[name] = []
        for step in range(20):
            torch.manual_seed(step)  # of the dropout
            loss = model(IDS, labels=IDS).loss
            loss.backward()
            losses[name].append(loss.item())
            if not step:
                gradients[name] = {each: values.grad.clone() for each, values in trained(model)}
            optimizer.step()
            optimizer.zero_grad()
    for name, values in gradients["ours"].items():
        torch.testing.assert_close(values, gradients["theirs"][f"{name}.default.weight"], rtol=1e-4, atol=1e-7)
    assert losses["ours"] == pytest.approx(losses["theirs"], abs=1e-5)
    assert losses["ours"][0] - losses["ours"][-1] > 0.05  # it learned
    for name, values in adapter_state(ours).items():
        # AdamW divides a gradient by its own size: where that is rounding, a weight moves by some of the rate.
        torch.testing.assert_close(values, parts[name].detach(), rtol=0, atol=2e-4)


@settings(deadline=None, max_examples=25)
@given(
    inside=st.integers(1, 40), outside=st.integers(1, 40), r=st.integers(1, 12), alpha=st.floats(0.1, 64),
    bias=st.booleans(), rslora=st.booleans(), rows=st.integers(0, 5),
)  # fmt: skip
def test_a_layer_of_any_shape(inside, outside, r, alpha, bias, rslora, rows):
    model = nn.Sequential(nn.Linear(inside, outside, bias=bias))
    config = {"r": r, "lora_alpha": alpha, "use_rslora": rslora}
    theirs = inject_adapter_in_model(LoraConfig(target_modules=["0"], **config), copy.deepcopy(model))
    inject(model, LoRAConfig(**config))
    layer, part = model[0], theirs[0]
    with torch.no_grad():
        layer.lora_B.normal_()
        part.lora_A["default"].weight.copy_(layer.lora_A)
        part.lora_B["default"].weight.copy_(layer.lora_B)
    x = torch.randn(rows, 3, inside)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.delta(), part.get_delta_weight("default"), rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_changes_nothing_and_b_alone_has_a_gradient():
    model = llama().eval()
    before = model(IDS).logits
    inject(model, LoRAConfig())
    after = model(IDS).logits
    assert torch.equal(before, after)
    after.sum().backward()
    for _, layer in adapters(model):
        assert layer.lora_B.grad.abs().max() > 0 and not layer.lora_A.grad.any()
        assert layer.base_layer.weight.grad is None


def test_parameters_by_formula():
    model = llama()
    assert sum(p.numel() for p in inject_and(model, LoRAConfig(r=8)).parameters() if p.requires_grad) == sum(
        8 * (layer.base_layer.in_features + layer.base_layer.out_features) for _, layer in adapters(model)
    )


def inject_and(model: nn.Module, config: LoRAConfig) -> nn.Module:
    inject(model, config)
    return model


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_merged(options):
    ours, theirs, _ = both(llama().eval(), **options)
    plain = merged(ours)
    assert not any(isinstance(part, LoRALinear) for part in plain.modules())
    torch.testing.assert_close(plain(IDS).logits, ours(IDS).logits, rtol=0, atol=2e-6)
    for name, layer in theirs.named_modules():
        if hasattr(layer, "merge"):
            layer.merge()
            torch.testing.assert_close(
                plain.get_submodule(name).weight, layer.base_layer.weight.detach(), rtol=0, atol=1e-7
            )
    kept = {name: values.clone() for name, values in ours.state_dict().items()}
    merge_(ours)
    torch.testing.assert_close(plain(IDS).logits, ours(IDS).logits, rtol=0, atol=0)
    with pytest.raises(ValueError, match="merged already"):
        merge_(ours)
    unmerge_(ours)
    assert all(torch.equal(values, kept[name]) for name, values in ours.state_dict().items())
    with pytest.raises(ValueError, match="nothing is merged"):
        unmerge_(ours)


def test_an_adapter_that_is_not_finite_is_not_merged():
    model = inject_and(llama(), LoRAConfig())
    last = list(adapters(model))[-1][1]
    with torch.no_grad():
        last.lora_B[0, 0] = torch.nan
    kept = {name: values.clone() for name, values in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"layers.1.mlp.down_proj is not finite"):
        merge_(model)
    assert all(torch.equal(values.nan_to_num(), kept[name].nan_to_num()) for name, values in model.state_dict().items())


def test_a_merge_in_half_the_width_loses_what_float32_keeps():
    model = llama().bfloat16().eval()
    inject(model, LoRAConfig(r=4, lora_alpha=0.01))
    layer = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B.normal_(std=1e-3)
    weight = merged(model).model.layers[0].self_attn.q_proj.weight
    exact = layer.base_layer.weight.float() + layer.delta()
    assert weight.dtype == torch.bfloat16 and torch.equal(weight, exact.bfloat16())


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_files_are_read_both_ways(options, tmp_path):
    ours, _, _ = both(llama().eval(), **options)
    save_adapter(ours, tmp_path / "ours", "somewhere", "0123")
    theirs = PeftModel.from_pretrained(llama(), tmp_path / "ours").eval()
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, rtol=0, atol=2e-6)
    read = read_adapter(tmp_path / "ours")
    assert (read.base, read.base_name) == ("0123", "somewhere")

    made = get_peft_model(
        llama(),
        LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options),
    ).eval()
    made.save_pretrained(tmp_path / "theirs")
    model = llama().eval()
    load_adapter(model, read_adapter(tmp_path / "theirs"))
    torch.testing.assert_close(model(IDS).logits, made(IDS).logits, rtol=0, atol=2e-6)


def test_pissa_beside_the_models_own_weights(tmp_path):
    model = llama().eval()
    inject(model, LoRAConfig(r=4, lora_alpha=6, init_lora_weights="pissa"))
    torch.testing.assert_close(model(IDS).logits, llama().eval()(IDS).logits, rtol=0, atol=2e-5)  # a split of W
    state = adapter_state(model)
    start = {name: values.clone() for name, values in state.items()}
    with torch.no_grad():
        for values in state.values():
            values.add_(torch.randn_like(values) / 50)
    config = LoRAConfig(r=4, lora_alpha=6, init_lora_weights="pissa")
    with pytest.raises(ValueError, match="beside_own_weights"):
        write_adapter(tmp_path, config, state)
    config, plain = beside_own_weights(config, state, start)
    write_adapter(tmp_path, config, plain)
    theirs = PeftModel.from_pretrained(llama(), tmp_path).eval()
    torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, rtol=0, atol=2e-5)


def test_gpt2s_layers_stand_the_other_way_round(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()
    ours = copy.deepcopy(model)
    names = inject(ours, LoRAConfig(r=3, target_modules=("c_attn", "c_proj")))
    assert names[0] == "transformer.h.0.attn.c_attn" and len(names) == 6
    with torch.no_grad():
        for name, values in adapter_state(ours).items():
            if name.endswith("lora_B"):
                values.normal_(std=0.1)
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, rtol=0, atol=2e-6)
    torch.testing.assert_close(merged(ours)(IDS).logits, ours(IDS).logits, rtol=0, atol=2e-6)


def test_rows_of_a_batch_choose_their_adapter():
    banks, alone = {}, {}
    for number, name in enumerate(("one", "two"), start=1):
        model = llama().eval()
        config = LoRAConfig(r=2 * number, lora_alpha=3 * number, target_modules=("q_proj", "up_proj")[:number])
        inject(model, config)
        torch.manual_seed(number)
        with torch.no_grad():
            for values in adapter_state(model).values():
                values.normal_(std=0.1)
        banks[name], alone[name] = (config, adapter_state(model)), model(IDS).logits
    alone[None] = llama().eval()(IDS).logits
    model = llama().eval()
    bank = AdapterBank(model, banks)
    torch.testing.assert_close(model(IDS).logits, alone[None], rtol=0, atol=0)
    for names in (["one", "two"], ["two", None], [None, "one"], ["two", "two"]):
        bank.choose(names)
        expected = torch.stack([alone[name][row] for row, name in enumerate(names)])
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=3e-6)
    with pytest.raises(ValueError, match="2 rows have chosen an adapter, and the batch has 1"):
        model(IDS[:1])
    with pytest.raises(ValueError, match="no adapter is called 'three'; there are one, two"):
        bank.choose(["three"])
    with pytest.raises(ValueError, match="no layer"):
        AdapterBank(nn.Sequential(nn.Linear(2, 2)), banks)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("q_proj", "no_proj"), "no linear layer is called 'no_proj'; there are down_proj, gate_proj, k_proj"),
        ("nothing", "matches no linear layer"),
        ("([", "no regular expression"),
    ],
)
def test_targets_that_match_nothing(targets, words):
    model = llama()
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace("[", r"\[")):
        inject(model, LoRAConfig(target_modules=targets))
    assert not any(isinstance(part, LoRALinear) for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_targets():
    model = llama()
    assert len(find_targets(model, "all-linear")) == 14 and "lm_head" not in find_targets(model, "all-linear")
    assert find_targets(model, ("layers.1.self_attn.q_proj",)) == ["model.layers.1.self_attn.q_proj"]
    assert find_targets(model, r".*layers\.0\.mlp\..*") == [
        f"model.layers.0.mlp.{n}_proj" for n in ("gate", "up", "down")
    ]
    expected = {
        name: tuple(values.shape) for name, values in adapter_state(inject_and(llama(), LoRAConfig(r=3))).items()
    }
    assert shapes(model, LoRAConfig(r=3)) == expected
    inject(model, LoRAConfig())
    with pytest.raises(ValueError, match="adapters already"):
        inject(model, LoRAConfig())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 0}, "r=0"), ({"r": True}, "whole number"), ({"lora_alpha": 0}, "above 0"),
        ({"lora_alpha": float("nan")}, "finite"), ({"lora_dropout": 1}, "below 1"), ({"target_modules": ()}, "names"),
        ({"init_lora_weights": "zeros"}, "none of"), ({"use_dora": True, "init_lora_weights": "pissa"}, "one of them"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        LoRAConfig(**options)


def test_variants_that_a_layer_cannot_have():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match=r"Conv1D, and only nn\.Linear"):
        inject(model, LoRAConfig(use_dora=True, target_modules=("c_attn",)))
    with pytest.raises(ValueError, match="64 singular values; lower r"):
        inject(llama(), LoRAConfig(r=65, init_lora_weights="pissa", target_modules=("q_proj",)))


def changed(folder, **keys):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"peft_type": "IA3"}, "reads LORA only"), ({"rank_pattern": {"q": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"bias": "all"}, "bias='all'"),
        ({"alpha_pattern": {"q": 1}}, "alpha_pattern"), ({"lora_bias": True}, "lora_bias"), ({"r": 0}, "r=0"),
        ({"r": 5}, "has the shape"), ({"some_new_key": 3}, "some_new_key=3 changes what the adapter does"),
    ],
)  # fmt: skip
def test_an_adapter_that_is_not_followed_is_refused_by_name(keys, words, tmp_path):
    save_adapter(inject_and(llama(), LoRAConfig(r=4)), tmp_path)
    changed(tmp_path, **keys)
    with pytest.raises(ValueError, match=words):
        load_adapter(llama(), read_adapter(tmp_path))


def test_an_adapter_for_another_model_or_damaged(tmp_path):
    save_adapter(inject_and(llama(), LoRAConfig(r=4)), tmp_path)
    read = read_adapter(tmp_path)
    with pytest.raises(ValueError, match="has the shape"):
        load_adapter(llama(hidden_size=32), read)
    with pytest.raises(ValueError, match=r"no layer model\.layers\.1"):
        load_adapter(llama(num_hidden_layers=1), read)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json is damaged"):
        read_adapter(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapter(llama(), tmp_path / "none")


def test_a_fingerprint_tells_weights_apart(base):
    model = llama(tie_word_embeddings=True, max_position_embeddings=256)
    found = fingerprint_of_model(model)
    assert found == fingerprint_of_folder(base) == fingerprint_of_model(copy.deepcopy(model).bfloat16())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight += 1e-2
    assert fingerprint_of_model(model) != found


def test_spans_of_a_flat_row_are_the_rows_of_a_batch():
    """Three texts side by side in one row, of two adapters and of none, against each by itself."""
    banks, base = {}, llama(0).eval()
    for name, r in (("german", 4), ("code", 2)):
        model, config = llama(0), LoRAConfig(r=r, lora_alpha=8, target_modules=("q_proj", "down_proj"))
        inject(model, config)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(weight)
        banks[name] = (config, adapter_state(model))
    bank = AdapterBank(base, banks)
    layer = base.model.layers[0].self_attn.q_proj
    x, names, lengths = torch.randn(1, 9, 64), ["german", None, "code", "code"], [3, 2, 1, 3]
    bank.choose_spans(names, lengths)
    assert [(number, part.stop) for number, part in bank.choice.spans] == [(1, 3), (0, 5), (2, 9)]
    flat = layer(x)
    for name, part in zip(names, x.split(lengths, dim=1), strict=True):
        bank.choose([name])
        expected = layer(part)
        begin = next(i for i in range(9) if torch.equal(x[:, i], part[:, 0]))
        torch.testing.assert_close(flat[:, begin : begin + part.shape[1]], expected, atol=1e-6, rtol=1e-5)
    bank.choose_spans(["german"], [4])
    with pytest.raises(ValueError, match=r"4 tokens have chosen an adapter, and the batch is \(1, 9\)"):
        layer(x)
    with pytest.raises(ValueError, match="2 names and 1 lengths"):
        bank.choose_spans(["german", "code"], [4])
