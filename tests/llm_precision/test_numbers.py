"""Formats bit by bit against every pattern that torch knows; blocks and eight-bit products against torchao."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llm_precision.numbers.blocks import ELEMENTS, bits_a_number, from_blocks, to_blocks
from llm_precision.numbers.formats import (
    BF16,
    E2M1,
    E4M3,
    E5M2,
    FORMATS,
    FP16,
    FP32,
    TF32,
    Format,
    cast,
    decode,
    encode,
    stochastic_cast,
)
from llm_precision.numbers.products import (
    ROWWISE,
    TENSORWISE,
    ScaledLinear,
    scaled_product,
    with_scaled_products,
)
from llm_precision.numbers.sums import kahan_sum, plain_sum

TORCH = {
    "fp16": (torch.float16, torch.int16),
    "bf16": (torch.bfloat16, torch.int16),
    "fp8 E5M2": (torch.float8_e5m2, torch.uint8),
    "fp8 E4M3": (torch.float8_e4m3fn, torch.uint8),
}
# torch casts to E4M3, which has no infinity, by taking the largest number (up to 2.11 it gave NaN).
SATURATES = {"fp8 E4M3"}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, the signs of zeros too, and NaN where the other is."""
    return bool(((a == b) & (a.signbit() == b.signbit()) | (a.isnan() & b.isnan())).all())


def bits_of(values: torch.Tensor, name: str) -> torch.Tensor:
    dtype, integer = TORCH[name]
    return values.to(dtype).view(integer).long() & (2 ** FORMATS[name].bits - 1)


def floats(count: int, seed: int = 0) -> torch.Tensor:
    """Random patterns of 32 bits: all exponents alike, infinities and NaN too."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (count,), generator=draw).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("name", TORCH)
def test_every_pattern_is_torchs(name: str) -> None:
    format, (dtype, integer) = FORMATS[name], TORCH[name]
    patterns = torch.arange(2**format.bits)
    theirs = patterns.to(integer).view(dtype).double()
    ours = torch.tensor([decode(pattern, format) for pattern in patterns.tolist()], dtype=torch.float64)
    assert same(ours, theirs)
    numbers = patterns[~theirs.isnan()].tolist()
    assert [encode(decode(pattern, format), format) for pattern in numbers] == numbers
    assert all(math.isnan(decode(encode(sign * math.nan, format), format)) for sign in (1, -1))


@pytest.mark.parametrize("name", TORCH)
def test_a_million_floats_are_rounded_as_torch_rounds_them(name: str) -> None:
    """Random patterns, and numbers of the format's own range with the halves between its neighbours among them."""
    format, (dtype, _) = FORMATS[name], TORCH[name]
    draw = torch.Generator().manual_seed(1)
    scale = torch.randint(math.frexp(format.min_subnormal)[1] - 2, math.frexp(format.max)[1] + 1, (500_000,),
                          generator=draw)  # fmt: skip
    near = torch.randn(500_000, generator=draw) * torch.exp2(scale.float())
    grid = near.to(dtype).float()
    halves = grid + torch.tensor([format.spacing(value) / 2 for value in grid[:20_000].tolist()]).repeat(25)
    for values in (floats(500_000), near, halves):
        assert same(cast(values, format, saturate=name in SATURATES), values.to(dtype).float())
    few = torch.cat([floats(5_000, 2), near[:5_000], halves[:5_000]])
    few = few[~few.isnan()]
    ours = torch.tensor([encode(value, format, saturate=name in SATURATES) for value in few.tolist()])
    assert torch.equal(ours, bits_of(few, name))


@given(st.floats(width=32))
def test_casting_is_encoding_and_decoding(value: float) -> None:
    for format in FORMATS.values():
        saturate = not format.nan
        if math.isnan(value) and not format.nan:
            continue
        wanted = torch.tensor([decode(encode(value, format, saturate), format)])
        assert same(cast(torch.tensor([value]), format, saturate), wanted), format.name


def test_float32_is_itself_and_tf32_drops_13_bits() -> None:
    values = floats(200_000)
    assert same(cast(values, FP32), values)
    finite = values[values.isfinite()].clamp(-1e38, 1e38)
    low = finite.view(torch.int32)
    half_to_even = (low + 0xFFF + ((low >> 13) & 1)) & ~0x1FFF  # on the bits: add half of the last place kept, cut
    assert same(cast(finite, TF32), half_to_even.view(torch.float32))


@pytest.mark.parametrize("name", TORCH)
def test_the_properties_are_torchs(name: str) -> None:
    format, info = FORMATS[name], torch.finfo(TORCH[name][0])
    assert (format.max, format.min_normal, format.epsilon, format.bits) == (info.max, info.tiny, info.eps, info.bits)
    assert format.min_subnormal == decode(1, format)
    for pattern in (1, 2 ** (format.mantissa_bits + 1) + 1, format.max_pattern - 1):
        value = decode(pattern, format)
        assert format.spacing(value) == decode(pattern + 1, format) - value
    assert format.spacing(0.0) == format.min_subnormal


def test_the_numbers_of_fp4_are_those_of_the_standard() -> None:
    assert [decode(pattern, E2M1) for pattern in range(8)] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert [encode(value, E2M1, saturate=True) for value in (0.25, 0.75, 2.5, 100.0, -5.0)] == [0, 2, 4, 7, 14]


def test_what_a_format_has_no_pattern_for_is_refused() -> None:
    with pytest.raises(ValueError, match="has no NaN"):
        encode(math.nan, E2M1)
    with pytest.raises(ValueError, match="above the largest of fp4 E2M1, 6; saturate=True"):
        encode(7.0, E2M1)
    with pytest.raises(ValueError, match="256 is no pattern of 8 bits"):
        decode(256, E4M3)
    assert decode(encode(math.inf, FP16), FP16) == math.inf and decode(encode(1e9, BF16, True), BF16) == 1e9 // 1 - (
        1e9 - cast(torch.tensor([1e9]), BF16).item()
    )


def test_stochastic_rounding_is_right_on_average() -> None:
    draw = torch.Generator().manual_seed(0)
    for value in (1.3, -0.1, 1e-8, 300.0):
        rounded = stochastic_cast(torch.full((200_000,), value, dtype=torch.float64), FP16, draw)
        neighbours = rounded.unique()
        assert len(neighbours) <= 2 and neighbours.max() - neighbours.min() <= FP16.spacing(value)
        error = rounded.std() / len(rounded) ** 0.5
        assert abs(rounded.mean() - value) < 4 * error + 1e-15
    exact = torch.tensor([1.0, -2.0, 0.0])
    assert torch.equal(stochastic_cast(exact, FP16, draw), exact)


def test_a_plain_sum_stops_and_kahans_does_not() -> None:
    """Terms of 0.001: in bf16 the sum stays where half of the spacing is above the term, at 0.5."""
    values = [0.001] * 4000
    stops = next(2.0**e for e in range(-10, 10) if BF16.spacing(2.0**e) / 2 > 0.001)
    assert plain_sum(values, BF16) == stops == 0.5
    assert kahan_sum(values, BF16) == pytest.approx(4.0, rel=BF16.epsilon)
    assert kahan_sum(values, FP16) == pytest.approx(4.0, rel=FP16.epsilon)
    draw = torch.Generator().manual_seed(0)
    chance = plain_sum(values, BF16, lambda total, format: stochastic_cast(total, format, draw))
    assert chance == pytest.approx(4.0, rel=0.1)


# -- blocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.torchao
@pytest.mark.parametrize("name", ELEMENTS)
def test_blocks_are_torchaos(name: str) -> None:
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    draw = torch.Generator().manual_seed(3)
    x = torch.randn(16, 256, generator=draw) * torch.exp2(torch.randint(-60, 60, (16, 256), generator=draw).float())
    x[3, 32:64] = 0.0
    format = ELEMENTS[name]
    ours = to_blocks(x, format)
    dtype = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2, E2M1: torch.float4_e2m1fn_x2}[format]
    scale, data = to_mx(x, dtype, 32)
    assert torch.equal(ours.exponents, scale.view(torch.uint8).int().reshape(ours.exponents.shape) - 127)
    if format is E2M1:  # two to a byte, the lower half first
        packed = data.view(torch.uint8).reshape(16, 128)
        patterns = torch.stack([packed & 15, packed >> 4], dim=-1).reshape(16, 256)
        theirs = torch.tensor([decode(pattern, E2M1) for pattern in range(16)])[patterns.long()]
    else:
        theirs = data.float().reshape(16, 256)
    assert torch.equal(ours.elements.flatten(-2), theirs)


def test_blocks_come_back_within_the_formats_rounding() -> None:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(8, 128, generator=draw)
    for format in ELEMENTS.values():
        blocks = to_blocks(x, format)
        largest = x.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True).expand(-1, -1, 32).flatten(-2)
        # The largest number of a block lies in the format's highest binade, which the format does not fill: what is
        # above its largest number is cut down to it, by up to an eighth (448 of 512), for fp4 a quarter (6 of 8).
        cut = 1 - format.max / 2 ** math.frexp(format.max)[1]
        assert ((from_blocks(blocks) - x).abs() <= largest * max(format.epsilon / 2, cut)).all()
    assert (bits_a_number(E4M3), bits_a_number(E2M1)) == (8.25, 4.25)


def test_blocks_refuse_what_would_be_lost() -> None:
    with pytest.raises(ValueError, match="33, is no multiple of the block, 32; pad"):
        to_blocks(torch.ones(2, 33), E4M3)
    with pytest.raises(ValueError, match="not finite would spoil its 31 neighbours"):
        to_blocks(torch.tensor([[math.inf] + [1.0] * 31]), E4M3)


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.mark.torchao
@pytest.mark.parametrize(("name", "recipe"), [("tensorwise", TENSORWISE), ("rowwise", ROWWISE)])
def test_products_in_eight_bits_are_torchaos_forward_and_backward(name, recipe) -> None:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(64, 48, bias=False), torch.nn.GELU(), torch.nn.Linear(48, 32))
    ours, theirs = copy.deepcopy(layers), copy.deepcopy(layers)
    with_scaled_products(ours, recipe)
    theirs = convert_to_float8_training(theirs, config=replace(Float8LinearConfig.from_recipe_name(name), emulate=True))
    inputs = [torch.randn(4, 5, 64).mul_(10).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outputs = [model(x) for model, x in zip((ours, theirs), inputs, strict=True)]
    for output in outputs:
        (output * torch.arange(32)).sum().backward()
    assert torch.equal(*outputs) and torch.equal(inputs[0].grad, inputs[1].grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
    exact = layers(inputs[0])
    assert 0.01 < (outputs[0] - exact).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("recipe", [TENSORWISE, ROWWISE])
@pytest.mark.parametrize("formats", [(E4M3, E4M3), (E5M2, E4M3)])
def test_the_error_of_a_product_is_that_of_its_formats(recipe, formats: tuple[Format, Format]) -> None:
    """A rounding is off by up to half a spacing, evenly: spacing / sqrt(12). Relative to a number with significand s in
    [1, 2) that is epsilon / (s sqrt(12)), and with s spread as 1 / s the mean of 1 / s^2 is 3 / (8 ln 2) = 0.541. The
    errors of the two factors add as squares."""
    torch.manual_seed(0)
    a, b = torch.randn(512, 1024), torch.randn(1024, 512)
    exact = a @ b
    error = ((scaled_product(a, b, formats, recipe) - exact).norm() / exact.norm()).item()
    predicted = math.sqrt(sum(each.epsilon**2 * 3 / (8 * math.log(2)) / 12 for each in formats))
    assert error == pytest.approx(predicted, rel=0.03)


def test_one_outlier_costs_a_whole_matrix_with_one_scale_and_one_row_with_scales_by_row() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(64, 256), torch.randn(256, 64)
    a[0, 0] = 1e6
    exact = a[1:] @ b
    lost = [((scaled_product(a, b, (E4M3, E4M3), recipe)[1:] - exact).norm() / exact.norm()).item()
            for recipe in (TENSORWISE, ROWWISE)]  # fmt: skip
    assert lost[0] > 0.5 and lost[1] < 0.05


def test_a_model_with_scaled_products_keeps_its_parameters_and_its_head() -> None:
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(8, 8), "lm_head": torch.nn.Linear(8, 4)})
    before = dict(model.named_parameters())
    with_scaled_products(model, ROWWISE)
    assert type(model["body"]) is ScaledLinear and type(model["lm_head"]) is torch.nn.Linear
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model["body"].recipe is ROWWISE
