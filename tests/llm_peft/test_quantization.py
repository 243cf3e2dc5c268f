"""Four bits and eight: our bytes are bitsandbytes', and the errors are what an integral says."""

from __future__ import annotations

import copy

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.inject import adapter_state, inject
from llm_peft.lora.merging import merge_, merged
from llm_peft.prepare import add_adapter, to_four_bits, trained_state
from llm_peft.quantization import fast
from llm_peft.quantization.adamw8bit import AdamW8bit
from llm_peft.quantization.blocks import dequantize_blocks, dynamic_table, quantize_blocks
from llm_peft.quantization.errors import expected_error, mean_error, rounded, tables
from llm_peft.quantization.linear import NF4Linear, quantize_linears
from llm_peft.quantization.nf4 import dequantize_nf4, nf4_table, pack, quantize_nf4, scales, unpack
from llm_peft.settings import FineTune
from small_llama import llama
from torch import nn

IDS = torch.arange(64).view(2, 32) % 50


def weights(shape, kind: str, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    normal = torch.randn(shape) * 0.03
    return {"normal": normal, "heavy": normal**3, "zeros": torch.zeros(shape), "uneven": normal * (normal > 0.02),
            "steps": (normal * 100).round() / 7}[kind]  # fmt: skip


def test_the_tables_are_the_librarys():
    assert torch.equal(nf4_table(), F.get_4bit_type("nf4", device="cpu"))
    for signed in (True, False):
        assert torch.equal(dynamic_table(signed), F.create_dynamic_map(signed))
    fp4 = torch.tensor(sorted({value.item() for value in F.get_4bit_type("fp4", device="cpu")}))
    assert torch.equal(tables()["fp4"], fp4)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40), columns=st.sampled_from([64, 128, 576]),
    kind=st.sampled_from(["normal", "heavy", "zeros", "uneven", "steps"]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_nf4_is_the_librarys_byte_for_byte(rows, columns, kind, seed):
    weight = weights((rows, columns), kind, seed)
    for double in (False, True):
        packed, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
        ours = quantize_nf4(weight, double)
        assert torch.equal(ours.packed, packed.flatten())
        if double:
            assert torch.equal(ours.double.indices, state.absmax)
            assert torch.equal(ours.double.absmax, state.state2.absmax)
            assert torch.equal(ours.offset, state.offset)
        else:
            assert torch.equal(scales(ours), state.absmax)
        for dtype in (torch.float32, torch.bfloat16):
            state.dtype = dtype
            assert torch.equal(dequantize_nf4(ours, dtype), F.dequantize_4bit(packed, state))
            assert torch.equal(fast.dequantize_nf4(ours, dtype), dequantize_nf4(ours, dtype))


def test_a_million_weights_and_their_bits():
    weight = weights((1024, 1024), "normal")
    packed, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    ours = quantize_nf4(weight)
    assert torch.equal(ours.packed, packed.flatten()) and torch.equal(
        dequantize_nf4(ours), F.dequantize_4bit(packed, state)
    )
    assert 8 * quantize_nf4(weight, double=False).bytes / weight.numel() == 4.5
    assert 8 * (ours.bytes - 4) / weight.numel() == 4 + 8 / 64 + 32 / (64 * 256)  # and four bytes of the mean


@given(st.lists(st.integers(0, 15), max_size=33))
def test_packing(numbers):
    nibbles = torch.tensor(numbers, dtype=torch.uint8)
    packed = pack(nibbles)
    assert len(packed) == -(-len(numbers) // 2) and torch.equal(unpack(packed, len(numbers)), nibbles)
    if len(numbers) > 1:
        assert packed[0] == 16 * numbers[0] + numbers[1]


@given(st.integers(1, 200), st.integers(0, 10**6))
def test_a_last_block_that_is_not_full(number, seed):
    """bitsandbytes' layers take multiples of 64 only. Here each weight becomes the nearest of its block's sixteen."""
    weight = weights((1, number), "normal", seed)
    found = dequantize_nf4(quantize_nf4(weight, double=False))
    scale = torch.cat([each.abs().max().expand(len(each)) for each in weight[0].split(64)])
    choices = nf4_table()[:, None] * scale
    gaps = (choices - weight).abs()
    assert torch.equal(fast.dequantize_nf4(quantize_nf4(weight, double=False)), found)
    torch.testing.assert_close((found - weight).abs()[0], gaps.min(dim=0).values, rtol=0, atol=1e-7)


def test_numbers_that_are_none():
    with pytest.raises(ValueError, match="not finite"):
        quantize_nf4(torch.tensor([[1.0, torch.inf]]))


@settings(deadline=None, max_examples=40)
@given(number=st.integers(1, 1500), signed=st.booleans(), seed=st.integers(0, 10**6), cubed=st.booleans())
def test_eight_bits_are_the_librarys(number, signed, seed, cubed):
    torch.manual_seed(seed)
    values = torch.randn(number) ** (3 if cubed else 1)
    values = values if signed else values.square()
    bytes_, absmax = torch.ops.bitsandbytes.quantize_blockwise(values, F.create_dynamic_map(signed), 256)
    ours = quantize_blocks(values, dynamic_table(signed))
    assert torch.equal(ours.indices, bytes_) and torch.equal(ours.absmax, absmax)
    back = torch.ops.bitsandbytes.dequantize_blockwise(bytes_, absmax, F.create_dynamic_map(signed), 256, torch.float32)
    assert torch.equal(dequantize_blocks(ours, dynamic_table(signed)), back)


@pytest.mark.parametrize("shape", [(10,), (63, 65), (64, 64), (300, 77)])
def test_adamw_of_eight_bits(shape):
    """The weights and every byte after 30 steps; below 4,096 numbers the averages are float32."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    first, second = AdamW8bit([ours], lr=1e-2), bnb.optim.AdamW8bit([theirs], lr=1e-2)
    for step in range(30):
        gradient = torch.randn(shape) * 10.0 ** (step % 5 - 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    state, other = first.state[ours], second.state[theirs]
    assert torch.equal(ours, theirs)
    assert torch.equal(state["exp_avg"].flatten(), other["state1"].flatten())
    assert torch.equal(state["exp_avg_sq"].flatten(), other["state2"].flatten())
    assert (state["exp_avg"].dtype == torch.uint8) == (ours.numel() >= 4096)
    if ours.numel() >= 4096:
        held = sum(values.nbytes for values in state.values() if isinstance(values, torch.Tensor))
        assert held == 2 * (ours.numel() + 4 * -(-ours.numel() // 256))


def test_errors_by_an_integral():
    torch.manual_seed(0)
    normal = torch.randn(2048, 1024)  # of so many the mean error is known to some 0.08%
    for name, table in tables().items():
        assert mean_error(normal, table) == pytest.approx(expected_error(table), rel=2e-3), name
    assert expected_error(nf4_table()) == pytest.approx(0.0728, abs=5e-5)
    errors = {name: expected_error(table) for name, table in tables().items()}
    assert errors["nf4"] < errors["int4"] < errors["fp4"]
    assert expected_error(nf4_table(), 256) > errors["nf4"] > expected_error(nf4_table(), 16)
    packed, state = F.quantize_4bit(normal[:64], quant_type="fp4")
    assert torch.equal(rounded(normal[:64], tables()["fp4"]), F.dequantize_4bit(packed, state))


def test_a_layer_of_four_bits():
    torch.manual_seed(0)
    layer = nn.Linear(128, 96)
    ours = NF4Linear(layer)
    x = torch.randn(3, 5, 128, requires_grad=True)
    written = F.dequantize_4bit(*F.quantize_4bit(layer.weight.data, quant_type="nf4", compress_statistics=True))
    expected = x @ written.T + layer.bias
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours(x).square().sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), x)[0], rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    again = NF4Linear(nn.Linear(128, 96))
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(x), ours(x))


def test_qlora_is_bitsandbytes_and_pefts():
    """Loss and gradients of the adapter, with four bits below it, on the layers of both."""
    found = {}
    for library in ("peft", "ours"):
        settings = FineTune(method="qlora", lora=LoRAConfig(r=4), library=library, dtype="float32")
        model = to_four_bits(llama(), settings)
        torch.manual_seed(0)
        add_adapter(model, settings.lora, library)
        state = trained_state(model)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name in sorted(state):
                state[name].copy_(torch.randn(state[name].shape, generator=generator) / 10)
        loss = model.train()(IDS, labels=IDS).loss
        loss.backward()
        gradients = [values.grad for values in model.parameters() if values.requires_grad]
        found[library] = (loss.item(), dict(zip(state, gradients, strict=True)))
    assert found["ours"][0] == pytest.approx(found["peft"][0], abs=1e-6)
    for name, gradient in found["ours"][1].items():
        torch.testing.assert_close(gradient, found["peft"][1][name], rtol=1e-4, atol=1e-6)


def test_a_validation_does_not_spoil_the_gradients():
    """On CPUs with AVX512-BF16 the library's layer, left to itself, has others after one forward pass in evaluation."""
    settings = FineTune(method="qlora", lora=LoRAConfig(r=4), dtype="float32")
    model = to_four_bits(llama(), settings)
    add_adapter(model, settings.lora, "peft")
    layers = [part for part in model.modules() if isinstance(part, bnb.nn.Linear4bit)]
    # What repacks is off on every CPU, also on one that would not repack and shows no difference below.
    assert len(layers) == 14 and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    with torch.no_grad():
        for values in trained_state(model).values():
            values.fill_(0.01)

    def gradients() -> list[torch.Tensor]:
        model.train().zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return [values.grad.clone() for values in model.parameters() if values.requires_grad]

    before = gradients()
    with torch.no_grad():
        model.eval()(IDS)
    assert all(map(torch.equal, before, gradients()))


def test_merging_four_bits_writes_them_out():
    model = llama().eval()
    quantize_linears(model)
    inject(model, LoRAConfig(r=4))
    with torch.no_grad():
        for values in adapter_state(model).values():
            values.normal_(std=0.1)
    with pytest.raises(ValueError, match="would round the update"):
        merge_(model)
    plain = merged(model)
    assert type(plain.model.layers[0].mlp.up_proj) is nn.Linear
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=0, atol=2e-5)


def test_the_head_and_the_norms_keep_their_width():
    model = llama()
    before = copy.deepcopy(model)
    names = quantize_linears(model)
    assert len(names) == 14 and type(model.lm_head) is nn.Linear
    assert torch.equal(model.model.norm.weight, before.model.norm.weight)
    with pytest.raises(ValueError, match="matches no linear layer"):
        quantize_linears(nn.Sequential(nn.Embedding(2, 2)))
