"""Integers of compressed-tensors, GPTQ as OBQ has it, scales folded without a trace, exact integer products."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_core.losses import causal_loss
from llm_peft.quantization.nf4 import dequantize_nf4, quantize_nf4
from llm_precision.numbers.formats import E4M3, cast
from llm_serve.quantization.apply import SCHEMES, quantize, written_out
from llm_serve.quantization.awq import channel_scale, search_scale
from llm_serve.quantization.calibration import Moments, Walk, blocks_of, text_rows
from llm_serve.quantization.fold import folds_of
from llm_serve.quantization.fp8 import Fp8Scheme, to_fp8, weight_to_fp8
from llm_serve.quantization.gptq import damped, gptq, output_error, rounding_order
from llm_serve.quantization.linear import IntLinear
from llm_serve.quantization.packing import pack, unpack
from llm_serve.quantization.perplexity import paired_difference, row_losses
from llm_serve.quantization.rounding import WeightScheme, fit_grid, round_to_grid, round_to_nearest
from llm_serve.quantization.smooth import Int8Linear, Int8Scheme, integer_product, smooth_scale
from quantized_models import IDS, gpt, llama, qwen
from torch import nn

EACH = settings(deadline=None, max_examples=60)


def weights(outputs: int, inputs: int, seed: int = 0, zeros: bool = False) -> torch.Tensor:
    made = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) ** 3
    if zeros:
        made[0] = 0
    return made


def correlated(inputs: int, seed: int = 0) -> torch.Tensor:
    """A Hessian of inputs that are correlated and of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(3 * inputs, inputs, generator=generator) @ mixing * torch.randn(inputs, generator=generator).exp()
    return (x.T @ x).double() / len(x)


def arguments(scheme: WeightScheme) -> QuantizationArgs:
    strategy = "channel" if scheme.group_size is None else "group"
    return QuantizationArgs(
        num_bits=scheme.bits, symmetric=scheme.symmetric, strategy=strategy, group_size=scheme.group_size
    )


@EACH
@given(bits=st.integers(2, 8), symmetric=st.booleans(), group=st.sampled_from([None, 8, 32]), rows=st.integers(1, 9),
       seed=st.integers(0, 10**6), dtype=st.sampled_from([torch.float32, torch.bfloat16]))  # fmt: skip
def test_integers_are_the_librarys(bits, symmetric, group, rows, seed, dtype):
    scheme, weight = WeightScheme(bits, symmetric, group), weights(rows, 64, seed).to(dtype)
    cut = weight.unflatten(-1, (1 if group is None else 64 // group, -1))
    scale, zero_point = calculate_qparams(cut.amin(-1), cut.amax(-1), arguments(scheme))
    theirs = their_quantize(weight, scale, zero_point, arguments(scheme), dtype=torch.int8)
    ours = round_to_nearest(weight, scheme)
    assert torch.equal(ours.grid.scale, scale) and torch.equal(ours.numbers, theirs)
    assert (ours.grid.zero_point is None) == symmetric
    assert symmetric or torch.equal(ours.grid.zero_point, zero_point)
    assert torch.equal(ours.dequantize(), their_dequantize(theirs, scale, zero_point, arguments(scheme)))


@given(st.integers(2, 8), st.booleans(), st.integers(0, 10**6))
def test_nearest_is_within_half_a_step_and_zero_stays(bits, symmetric, seed):
    scheme, weight = WeightScheme(bits, symmetric, 16), weights(5, 48, seed, zeros=True)
    ours = round_to_nearest(weight, scheme)
    change = (ours.dequantize() - weight).abs().unflatten(-1, (3, 16))
    # A zero point is rounded too, which moves the ends of the grid by up to half a step.
    assert (change <= ours.grid.scale[..., None] * (0.5 if symmetric else 1.0) * (1 + 1e-4)).all()
    assert not ours.dequantize()[0].any()


@EACH
@given(bits=st.integers(1, 8), rows=st.integers(1, 6), columns=st.integers(1, 90), seed=st.integers(0, 10**6))
def test_words_are_the_librarys_bit_for_bit(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    low = -(2 ** (bits - 1))
    numbers = torch.randint(low, -low, (rows, columns), generator=generator, dtype=torch.int8)
    words = pack(numbers, bits)
    assert torch.equal(words, pack_to_int32(numbers, bits)) and words.dtype == torch.int32
    assert torch.equal(unpack(words, bits, columns), numbers)
    assert torch.equal(unpack(words, bits, columns), unpack_from_int32(words, bits, numbers.shape))


def test_words_that_do_not_fit():
    with pytest.raises(ValueError, match="from -8 to 9 have more than 4 bits"):
        pack(torch.tensor([[-8, 9]], dtype=torch.int8), 4)
    with pytest.raises(ValueError, match="take 2 words, and there are 1"):
        unpack(torch.zeros(1, 1, dtype=torch.int32), 4, 9)


def obq(weight: torch.Tensor, hessian: torch.Tensor, scheme: WeightScheme) -> torch.Tensor:
    """GPTQ from its definition: after each column the inverse of the Hessian of those that are left, anew."""
    grid = fit_grid(weight, scheme)
    scale, zero = (
        torch.zeros_like(weight) if part is None else part.repeat_interleave(weight.shape[1] // part.shape[1], dim=1)
        for part in grid
    )
    wide, rest = damped(hessian, scheme.damping), weight.double().clone()
    left = wide.diagonal().argsort(descending=True).tolist() if scheme.actorder else list(range(len(wide)))
    numbers = torch.zeros_like(weight, dtype=torch.int8)
    while left:
        inverse, j = torch.linalg.inv(wide[left][:, left]), left[0]
        q = (rest[:, j] / scale[:, j].double() + zero[:, j]).clamp(scheme.lowest, scheme.highest).round()
        error = rest[:, j] - (q - zero[:, j]) * scale[:, j].double()
        rest[:, left] -= error[:, None] * inverse[0] / inverse[0, 0]
        numbers[:, j] = q.to(torch.int8)
        left = left[1:]
    return numbers


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("actorder", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 8), (2, None), (3, 16)])
def test_gptq_is_obq_column_by_column(bits, group, symmetric, actorder):
    weight, hessian = weights(12, 48), correlated(48)
    scheme = WeightScheme(bits, symmetric, group, actorder)
    for block in (1, 7, 48, 128):
        assert torch.equal(gptq(weight, hessian, scheme, block).numbers, obq(weight, hessian, scheme))


def test_gptqs_error_is_what_its_columns_pay():
    """The error is the sum of (w - q)² / U_jj²; with no weight off its grid each is within half a step. The nearest
    weights pay about H_jj instead, which is never less."""
    weight, hessian = weights(64, 48), correlated(48)
    for actorder in (False, True):
        scheme = WeightScheme(8, True, None, actorder)  # so fine that no moved weight leaves the grid by much
        order, wide = rounding_order(hessian, scheme), damped(hessian, scheme.damping)
        torch.testing.assert_close(
            order.factor.T @ order.factor, torch.linalg.inv(wide[order.columns][:, order.columns]), rtol=1e-9, atol=0
        )
        left = order.factor.diagonal() ** -2
        assert (left <= wide.diagonal()[order.columns] * (1 + 1e-9)).all()
        found, nearest = gptq(weight, order, scheme), round_to_nearest(weight, scheme)
        error = output_error(found.dequantize() - weight, wide)
        assert error <= float((found.grid.scale.double() ** 2).sum() / 4 * left.sum())
        # On average a third of that, with some hundred thousand roundings to within a few percent.
        assert error == pytest.approx(float((found.grid.scale.double() ** 2).sum() / 12 * left.sum()), rel=0.1)
        assert error < output_error(nearest.dequantize() - weight, wide)


@given(st.integers(2, 4), st.sampled_from([None, 16]), st.booleans(), st.booleans(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_gptq_is_not_worse_than_the_nearest(bits, group, symmetric, actorder, seed):
    weight, hessian = weights(40, 48, seed), correlated(48, seed + 1)
    scheme = WeightScheme(bits, symmetric, group, actorder)
    wide = damped(hessian, scheme.damping)
    nearest = output_error(round_to_nearest(weight, scheme).dequantize() - weight, wide)
    assert output_error(gptq(weight, hessian, scheme).dequantize() - weight, wide) < nearest


def test_gptq_without_correlation_rounds_to_nearest():
    """And so do channels whose inputs were all 0."""
    weight, scheme = weights(6, 32).double(), WeightScheme(4, True, 8)  # in which GPTQ divides: the largest is a tie
    assert torch.equal(
        gptq(weight, torch.diag(torch.rand(32)), scheme).numbers, round_to_nearest(weight, scheme).numbers
    )
    hessian = correlated(32)
    assert torch.equal(gptq(weight, 1e6 * hessian, scheme).numbers, gptq(weight, hessian, scheme).numbers)
    assert torch.equal(gptq(weight, 0 * hessian, scheme).numbers, round_to_nearest(weight, scheme).numbers)
    hessian[3], hessian[:, 3] = 0, 0
    assert torch.equal(gptq(weight, hessian, scheme).numbers[:, 3], round_to_nearest(weight, scheme).numbers[:, 3])


def test_hessians_that_give_no_order():
    with pytest.raises(ValueError, match="Hessian is not finite"):
        rounding_order(torch.full((4, 4), torch.nan), WeightScheme())
    with pytest.raises(ValueError, match=r"not positive definite with damping=0.01; raise damping"):
        rounding_order(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), WeightScheme())
    gptq(weights(2, 2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), WeightScheme(group_size=None, damping=2.0))


def seen(model: nn.Module, ids: torch.Tensor, name: str) -> torch.Tensor:
    """What a layer of a model is given."""
    kept = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: kept.append(args[0].flatten(0, -2)))
    model(ids)
    hook.remove()
    return torch.cat(kept)


@pytest.mark.parametrize("build", [gpt, llama, qwen])
def test_a_walk_sees_what_the_model_sees(build):
    model = build()
    walk = Walk(model, IDS)
    for number, block in enumerate(walk.blocks):
        names = [name for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
        found = walk.moments(block, {name: block.get_submodule(name) for name in names})
        assert found["self_attn.q_proj"] is found["self_attn.v_proj"]
        assert found["self_attn.o_proj"] is not found["mlp.up_proj"] is found["mlp.gate_proj"]
        for name in names:
            x = seen(model, IDS, f"model.layers.{number}.{name}")
            torch.testing.assert_close(found[name].hessian, (x.T @ x).double() / len(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[name].mean_size, x.abs().double().mean(0), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found[name].largest, x.abs().amax(0), rtol=1e-4, atol=1e-6)
        walk.advance(block)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("build", [gpt, qwen])
def test_a_block_reads_what_the_quantised_ones_before_it_give(build):
    model = build()
    done = quantize(model, "gptq", WeightScheme(2, group_size=16), IDS)
    errors = {layer.name: layer.output_error for layer in done.layers}
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.v_proj"):
        x, change = seen(done.model, IDS, name), done.model.get_submodule(name).dequantize()
        before = model.get_submodule(name).weight
        assert errors[name] == pytest.approx(float(((change - before) @ x.T).norm() / (before @ x.T).norm()), rel=1e-3)
        y = seen(model, IDS, name)  # far enough from what the whole model gives to tell them apart
        assert (x - y).norm() > 0.1 * y.norm()


@pytest.mark.parametrize(
    ("method", "scheme"), [("awq", WeightScheme(3, group_size=16)), ("smoothquant", Int8Scheme(0.7))]
)
def test_errors_after_folding_are_those_of_the_divided_inputs(method, scheme):
    model, name = gpt(), "model.layers.0.self_attn.q_proj"
    done = quantize(model, method, scheme, IDS)
    scale = model.model.layers[0].input_layernorm.weight / done.model.model.layers[0].input_layernorm.weight
    assert float(scale.max() / scale.min()) > 2
    x, before = seen(done.model, IDS, name), model.get_submodule(name).weight * scale
    change = done.model.get_submodule(name).dequantize() - before
    (found,) = (layer for layer in done.layers if layer.name == name)
    assert found.output_error == pytest.approx(float((change @ x.T).norm() / (before @ x.T).norm()), rel=1e-3)


def test_calibration_rows():
    class Letters:
        def __call__(self, text, add_special_tokens):
            assert not add_special_tokens
            return {"input_ids": [ord(letter) for letter in text]}

    texts = ["abcdefghij", "kl", "mnopqrst"]
    assert text_rows(texts, Letters(), rows=3, time=4, per_text=2).tolist() == [
        [ord(letter) for letter in row] for row in ("abcd", "efgh", "mnop")
    ]
    assert text_rows(iter(texts), Letters(), rows=2, time=4, per_text=1).tolist()[1] == [ord(each) for each in "mnop"]
    with pytest.raises(ValueError, match="give 4 rows of 4 tokens, and 5 are wanted"):
        text_rows(texts, Letters(), rows=5, time=4)


@pytest.mark.parametrize("build", [gpt, llama, qwen])
def test_folded_scales_leave_the_function(build):
    """Also with scales that differ a hundredfold, with biases, and with heads of values that several queries share."""
    model = build()
    changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for block in changed.model.layers:
        folds = folds_of(block, 16)
        assert [len(fold.layers) for fold in folds] == [3, 1, 2, 1] and folds[1].shared == (2, 16)
        for fold in folds:
            inputs = next(iter(fold.layers.values())).in_features
            channels = fold.narrow(torch.ones(inputs)).numel()
            fold.apply(torch.randn(channels, generator=generator).exp())
    for name, values in model.named_parameters():
        touched = "layers" in name and not name.endswith(("q_proj.bias", "k_proj.bias"))
        assert touched != torch.equal(values, changed.get_parameter(name)), name
    logits = model(IDS).logits
    assert (changed(IDS).logits - logits).norm() < 1e-5 * logits.norm()


def test_narrow_takes_the_heads_that_share_a_channel():
    fold = folds_of(gpt().model.layers[0], 16)[1]
    sizes = torch.arange(64.0)
    assert fold.narrow(sizes)[:3].tolist() == [8, 9, 10] and fold.narrow(sizes, largest=True)[16] == 48
    assert fold.widen(torch.arange(32.0))[[0, 16, 32, 48]].tolist() == [0, 0, 16, 16]


def test_folds_want_a_llama():
    with pytest.raises(ValueError, match=r"no input_layernorm before .*take rtn or gptq"):
        folds_of(nn.Sequential(nn.Linear(4, 4)), 4)


def test_a_norm_of_another_formula_is_found_out():
    """Gemma's norms multiply by 1 + weight: divided weights are another function."""

    class OnePlus(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.weight = norm, nn.Parameter(norm.weight - 1)

        def forward(self, x):
            return self.norm(x) / self.norm.weight * (1 + self.weight)

    model = gpt()
    model.model.layers[1].input_layernorm = OnePlus(model.model.layers[1].input_layernorm)
    quantize(model, "gptq", WeightScheme(4, group_size=16), IDS)
    with pytest.raises(ValueError, match="folding scales into Block changes its outputs by"):
        quantize(model, "awq", WeightScheme(4, group_size=16), IDS)


def moments_of(model: nn.Module, number: int = 0) -> tuple[list, dict[str, Moments]]:
    walk = Walk(model, IDS)
    folds = folds_of(walk.blocks[number], 16)
    return folds, walk.moments(
        walk.blocks[number], {name: layer for fold in folds for name, layer in fold.layers.items()}
    )


def test_awq_finds_the_best_of_its_scales():
    scheme = WeightScheme(3, False, 32)
    folds, moments = moments_of(gpt())
    alphas = []
    for fold in folds:
        seen_here = moments[next(iter(fold.layers))]
        found = search_scale(fold, seen_here, scheme)
        alphas.append(found.alpha)
        assert found.losses[found.alpha] == min(found.losses.values()) <= found.losses[0.0]
        nearest = sum(
            output_error(round_to_nearest(layer.weight, scheme).dequantize() - layer.weight, seen_here.hessian.float())
            for layer in fold.layers.values()
        )
        assert found.losses[0.0] == pytest.approx(nearest, rel=1e-5)
        # The loss is the one that the folded layers then have.
        made = copy.deepcopy(fold)
        made.apply(found.scale)
        after = seen_here.divided(fold.widen(found.scale)).hessian.float()
        loss = sum(
            output_error(round_to_nearest(layer.weight, scheme).dequantize() - layer.weight, after)
            for layer in made.layers.values()
        )
        assert loss == pytest.approx(found.losses[found.alpha], rel=1e-3)
    assert max(alphas) > 0


def test_awqs_scale():
    scale = channel_scale(torch.tensor([0.0, 1.0, 4.0, 16.0]), 0.5)
    torch.testing.assert_close(scale, torch.tensor([0.5, 0.5, 1.0, 2.0]))
    assert channel_scale(torch.tensor([1.0, 9.0]), 0.0).tolist() == [1, 1]
    assert channel_scale(torch.zeros(3), 0.5).tolist() == [1, 1, 1]


def test_methods_in_their_order():
    """On channels of very different sizes, three bits: each method that looks at them is better, on the whole."""
    model = gpt()
    layer = [each.output_error for each in quantize(model, "rtn", WeightScheme(3, group_size=32), IDS).layers]
    methods = {
        "gptq": quantize(model, "gptq", WeightScheme(3, group_size=32), IDS),
        "act-order": quantize(model, "gptq", WeightScheme(3, group_size=32, actorder=True), IDS),
        "awq": quantize(model, "awq", WeightScheme(3, group_size=32), IDS),
    }
    means = {name: sum(each.output_error for each in done.layers) / len(layer) for name, done in methods.items()}
    nearest = sum(layer) / len(layer)
    assert means["act-order"] < means["gptq"] < nearest and means["awq"] < nearest


def test_smoothing_moves_size_into_the_weights():
    model = gpt()
    folds, moments = moments_of(model)
    for fold in folds:
        name = next(iter(fold.layers))
        before = moments[name].largest.clone()
        for alpha in (0.0, 0.5, 1.0):
            made = copy.deepcopy(fold)
            scale = made.widen(smooth_scale(made, moments[name], alpha))
            made.apply(smooth_scale(made, moments[name], alpha))
            columns = torch.stack([layer.weight.abs().amax(0) for layer in made.layers.values()]).amax(0)
            inputs = made.narrow(before / scale, largest=True)
            columns = made.narrow(columns, largest=True)
            if alpha == 0.5:  # each channel is as large in the inputs as in the weights
                torch.testing.assert_close(inputs, columns, rtol=1e-4, atol=0)
            else:  # all of it is on one side
                even = inputs if alpha else columns
                torch.testing.assert_close(even, torch.ones_like(even), rtol=1e-4, atol=0)


def test_smoothing_helps_activations_with_outliers():
    model = gpt()
    for block in model.model.layers:  # the same function, with two channels that set every token's step
        for fold in folds_of(block, 16)[::2]:
            fold.apply(torch.tensor([0.01, 0.01] + 62 * [1.0]))
    losses = {
        alpha: row_losses(quantize(model, "smoothquant", Int8Scheme(alpha), IDS).model, IDS) for alpha in (None, 0.5)
    }
    change = {alpha: (each - row_losses(model, IDS)).abs().mean() for alpha, each in losses.items()}
    assert change[0.5] < 0.5 * change[None]


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 20), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_integer_products_are_exact(rows, inner, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-128, 128, (rows, inner), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (columns, inner), generator=generator, dtype=torch.int8)
    product = integer_product(a, b)
    assert product.dtype == torch.int32 and torch.equal(product.long(), a.long() @ b.long().T)


def test_a_sum_that_float32_does_not_hold():
    a = torch.full((1, 4096), -128, dtype=torch.int8)
    a[0, 0] = 1
    assert integer_product(a, a).item() == 4095 * 128**2 + 1
    assert float(torch.tensor(4095 * 128**2 + 1, dtype=torch.float32)) != 4095 * 128**2 + 1


def test_int8_linear_is_the_librarys():
    """On the same inputs. Ours adds integers, compressed-tensors the floats that they stand for."""
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 40), torch.randn(2, 7, 96) * torch.randn(96).exp()
    made = Int8Linear(round_to_nearest(layer.weight.detach(), WeightScheme(8, True, None)), layer.bias)
    arguments = QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True)
    scale, zero_point = compute_dynamic_scales_and_zp(x, arguments, layer)
    rounded = fake_quantize(x, scale, zero_point, arguments)
    expected = nn.functional.linear(rounded, made.dequantize(), layer.bias)
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)
    assert (made(x) - layer(x)).abs().max() > 1e-3  # and it is not the layer itself


@pytest.mark.parametrize("weights_", ["tensor", "channel"])
@pytest.mark.parametrize("activations", ["token", "tensor", None])
def test_fp8(weights_, activations):
    weight = weights(12, 32)
    made = weight_to_fp8(weight, Fp8Scheme(weights_, activations))
    assert made.scale.shape == ((1,) if weights_ == "tensor" else (12, 1))
    torch.testing.assert_close(made.numbers.float(), cast(weight / made.scale, E4M3, saturate=True), rtol=0, atol=0)
    assert float(made.numbers.float().abs().max()) == E4M3.max
    # The largest number of each scale is met but for the rounding of the scale itself.
    largest = weight.abs().amax(1, keepdim=True) if weights_ == "channel" else weight.abs().max()
    assert ((made.dequantize().abs() <= largest * (1 + 1e-6)).all()) and (made.dequantize() - weight).abs().max() > 0
    bound = (made.dequantize().abs() / 14).clamp(min=2.0**-10) * 1.0001 + made.scale * 2.0**-10
    assert ((made.dequantize() - weight).abs() <= bound).all()


def test_fp8_scales_of_activations():
    """One of all tokens cuts off what is larger than calibration saw; one for each token does not."""
    model = gpt()
    static = quantize(model, "fp8", Fp8Scheme("channel", "tensor"), IDS).model.model.layers[0].mlp.down_proj
    dynamic = quantize(model, "fp8", Fp8Scheme()).model.model.layers[0].mlp.down_proj
    inputs = seen(model, IDS, "model.layers.0.mlp.down_proj")
    # The block's inputs pass through layers that are not quantised yet.
    assert static.input_scale.item() == pytest.approx(float(inputs.abs().max()) / 448, rel=1e-5)
    far = inputs[:1] * 1000
    torch.testing.assert_close(dynamic(far), 1000 * dynamic(inputs[:1]), rtol=1e-3, atol=1e-3)
    assert static(far).norm() < 0.5 * dynamic(far).norm()
    together = dynamic(torch.cat([far, inputs[1:2]]))  # a large token takes nothing from its neighbours
    torch.testing.assert_close(together[1:], dynamic(inputs[1:2]), rtol=1e-5, atol=1e-5)
    zero = torch.zeros(1, 96)
    assert not dynamic(zero).any() and not to_fp8(zero, torch.ones(())).dequantize().any()


@pytest.mark.parametrize("method", SCHEMES)
def test_every_method_on_every_kind_of_model(method):
    for build in (gpt, llama, qwen):
        model = build()
        before = {name: values.clone() for name, values in model.state_dict().items()}
        scheme = WeightScheme(8, group_size=16) if SCHEMES[method] is WeightScheme else None
        done = quantize(model, method, scheme, IDS)
        assert [layer.name for layer in done.layers] == [
            name for name, layer in model.named_modules() if type(layer) is nn.Linear and name != "lm_head"
        ]
        for name, values in model.state_dict().items():
            assert torch.equal(values, before[name])
        assert not any(type(layer) is nn.Linear for layer in done.model.model.layers.modules())
        assert done.model.lm_head.weight is done.model.get_submodule("model.embed_tokens").weight
        difference = paired_difference(row_losses(done.model, IDS), row_losses(model, IDS))
        assert abs(difference.nats) < 0.2 and difference.nats != 0
        assert all(layer.output_error < 0.2 and layer.weight_error < 0.2 for layer in done.layers)
        assert all(layer.bits < 12.6 for layer in done.layers)  # float32 scales of groups of 16 take two bits
        if method in ("rtn", "gptq", "awq", "nf4"):
            torch.testing.assert_close(
                written_out(done.model)(IDS).logits, done.model(IDS).logits, rtol=1e-5, atol=1e-5
            )


def test_without_calibration_the_layers_are_the_same():
    model, scheme = gpt(), WeightScheme(4, group_size=32)
    first, second = quantize(model, "rtn", scheme), quantize(model, "rtn", scheme, IDS)
    for (name, values), other in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(values, other), name
    assert first.layers[0].output_error is None and first.layers[0].weight_error == second.layers[0].weight_error
    layer = model.model.layers[0].mlp.up_proj.weight
    nf4 = quantize(model, "nf4").model.model.layers[0].mlp.up_proj
    assert torch.equal(nf4.dequantize(), dequantize_nf4(quantize_nf4(layer)))


def test_named_layers_alone():
    model = gpt()
    done = quantize(model, "awq", WeightScheme(4, group_size=32), IDS, target_modules=("down_proj", "q_proj"))
    assert {layer.name.rpartition(".")[2] for layer in done.layers} == {"down_proj", "q_proj"} and len(done.layers) == 6
    assert type(done.model.model.layers[0].self_attn.k_proj) is nn.Linear
    # What is not quantised takes part in the folding, and the model stays what it was.
    assert paired_difference(row_losses(done.model, IDS), row_losses(model, IDS)).nats < 0.1


def test_a_layer_that_is_packed():
    layer = nn.Linear(24, 10)
    made = IntLinear(
        round_to_nearest(layer.weight.detach(), WeightScheme(4, False, 8)), WeightScheme(4, False, 8), layer.bias
    )
    assert made.weight_packed.shape == (10, 3) and made.weight_zero_point.shape == (2, 3)
    assert torch.equal(made.dequantize(), round_to_nearest(layer.weight.detach(), made.scheme).dequantize())
    x = torch.randn(2, 3, 24)
    assert torch.equal(made(x), nn.functional.linear(x, made.dequantize(), layer.bias))
    made.bias = None
    assert made(x.bfloat16()).dtype == torch.bfloat16


def test_bits_a_weight():
    assert WeightScheme(4, True, 128).bits_a_weight(256) == 4.125
    assert WeightScheme(3, False, 64).bits_a_weight(576) == 3 + 19 / 64
    assert WeightScheme(8, True, None).bits_a_weight(1024) == 8 + 16 / 1024
    done = quantize(gpt(), "rtn", WeightScheme(4, group_size=32))
    assert done.layers[0].bits == WeightScheme(4, group_size=32).bits_a_weight(64, scale_bits=32)


def test_requests_that_cannot_be():
    for wrong in (1, 9, True):
        with pytest.raises(ValueError, match="integers of 2 to 8 bits"):
            WeightScheme(wrong)
    for wrong in (0, -1, True):
        with pytest.raises(ValueError, match="group_size="):
            WeightScheme(group_size=wrong)
    with pytest.raises(ValueError, match="damping=0"):
        WeightScheme(damping=0)
    with pytest.raises(ValueError, match="alpha=2"):
        Int8Scheme(2)
    model, fitting = gpt(), WeightScheme(group_size=32)
    with pytest.raises(
        ValueError, match="method 'obq' is unknown; choose one of rtn, gptq, awq, smoothquant, fp8, nf4"
    ):
        quantize(model, "obq")
    with pytest.raises(ValueError, match="takes a Int8Scheme, and was given a WeightScheme"):
        quantize(model, "smoothquant", WeightScheme(8))
    with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj: group_size=24 does not .* 64 weights; take 16"):
        quantize(model, "rtn", WeightScheme(4, group_size=24))
    for method, scheme in (
        ("gptq", fitting),
        ("awq", fitting),
        ("smoothquant", None),
        ("fp8", Fp8Scheme("channel", "tensor")),
    ):
        with pytest.raises(ValueError, match=f"method '{method}' with .* needs calibration rows"):
            quantize(model, method, scheme)
    with pytest.raises(ValueError, match="calibration has 48 tokens"):
        quantize(model, "gptq", fitting, IDS[:1])
    with pytest.raises(ValueError, match="ids that the model does not know"):
        quantize(model, "gptq", fitting, IDS + 96)
    with pytest.raises(ValueError, match=r"lm_head is outside the blocks"):
        quantize(model, "gptq", fitting, IDS, target_modules=("lm_head",))
    with pytest.raises(ValueError, match=r"no nn.ModuleList of blocks"):
        blocks_of(nn.Linear(2, 2))
    broken = gpt()
    broken.model.layers[1].mlp.up_proj.weight[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj has weights that are not finite"):
        quantize(broken, "rtn", fitting)
    broken = gpt()
    broken.model.layers[1].input_layernorm.weight[0] = math.nan
    with pytest.raises(ValueError, match=r"layers.1.self_attn.q_proj: the Hessian is not finite"):
        quantize(broken, "gptq", fitting, IDS)
    with pytest.raises(ValueError, match=r"is a IntLinear, and only nn.Linear"):
        quantize(quantize(model, "rtn", fitting).model)


def test_paired_differences():
    model = gpt()
    losses = row_losses(model, IDS)
    total, targets = causal_loss(model(IDS).logits, IDS)
    assert losses.mean().item() == pytest.approx(float(total / targets), rel=1e-6)
    worse = losses + torch.tensor([0.01, 0.03] * 5)
    difference = paired_difference(worse, losses)
    assert difference.nats == pytest.approx(0.02) and difference.standard_error == pytest.approx(
        0.01 * math.sqrt(1 / 9)
    )
    assert difference.perplexity_ratio == pytest.approx(math.exp(0.02))
    assert difference.standard_error < 0.2 * float(losses.std()) / math.sqrt(10)  # of unpaired rows
    with pytest.raises(ValueError, match="1 rows beside 1"):
        paired_difference(losses[:1], losses[:1])


def test_a_grid_of_other_weights():
    """Weights may leave a grid: they are cut off at its ends."""
    scheme = WeightScheme(3, True, None)
    grid = fit_grid(torch.tensor([[1.0, -1.0]]), scheme)
    assert round_to_grid(torch.tensor([[9.0, -9.0]]), grid, scheme).numbers.tolist() == [[3, -4]]
    with pytest.raises(ValueError, match="not finite"):
        fit_grid(torch.tensor([[torch.nan]]), scheme)
