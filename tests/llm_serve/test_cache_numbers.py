"""Keys and values in few bits: how far a number may move, what a vector takes, and what a cache of them changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_precision.numbers.formats import E4M3, cast
from llm_serve.quantization.kv_cache import (
    FORMATS,
    bytes_a_vector,
    check_format,
    dequantize_vectors,
    error_bound,
    quantize_vectors,
)
from torch.nn import functional as F


@given(
    format=st.sampled_from(FORMATS), shape=st.sampled_from([(2, 3, 5, 8), (7, 64), (2,), (1, 1, 128)]),
    size=st.floats(1e-6, 1e3), seed=st.integers(0, 10**6),
)  # fmt: skip
@settings(deadline=None, max_examples=120)
def test_no_number_moves_further_than_the_bound(format, shape, size, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) ** 3 * size
    packed = quantize_vectors(x, format)
    back = dequantize_vectors(packed)
    assert back.shape == x.shape and packed.scale.shape == (*shape[:-1], 1) and packed.scale.dtype == torch.float16
    assert ((back - x).abs() <= error_bound(packed, format) * (1 + 1e-5)).all()
    held = packed.numbers.nbytes + packed.scale.nbytes
    assert held == bytes_a_vector(shape[-1], format) * x[..., 0].numel()
    # The scale is no larger than the largest number asks for, but for float16's own step there.
    most = {"int8": 127, "int4": 7, "fp8": 448}[format]
    needed = x.abs().amax(-1, keepdim=True) / most
    assert (packed.scale.float() >= needed).all() and (packed.scale.float() <= needed * 1.001 + 6.2e-5).all()


def test_the_numbers_themselves():
    x = torch.tensor([[127.0, -127.0, 0.4, 0.6, 1.5, 2.5], [0, 0, 0, 0, 0, 0]])
    packed = quantize_vectors(x)
    assert packed.numbers.tolist() == [[127, -127, 0, 1, 2, 2], [0] * 6] and packed.scale[0].item() == 1
    assert dequantize_vectors(packed)[1].tolist() == [0] * 6
    four = quantize_vectors(torch.tensor([[7.0, -7.0, -1.0, 3.0]]), "int4")
    assert four.numbers.tolist() == [[7 | 9 << 4, 15 | 3 << 4]]  # the first of a pair in the low half
    assert dequantize_vectors(four).tolist() == [[7, -7, -1, 3]]
    vector = torch.randn(1, 64).abs() + 0.1
    vector[0, 0] = 448
    eight = quantize_vectors(vector, "fp8")
    torch.testing.assert_close(dequantize_vectors(eight), cast(vector, E4M3), rtol=0, atol=0)
    assert dequantize_vectors(eight, torch.bfloat16).dtype == torch.bfloat16


def test_a_large_vector_takes_nothing_from_its_neighbours():
    x = torch.randn(1, 2, 6, 16)
    alone = dequantize_vectors(quantize_vectors(x))
    x[0, 1, 3] *= 1e4
    changed = dequantize_vectors(quantize_vectors(x))
    same = torch.ones(1, 2, 6, dtype=torch.bool)
    same[0, 1, 3] = False
    assert torch.equal(alone[same], changed[same])


def test_attention_over_quantised_keys_and_values():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, 32, 64).unbind(0)
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    errors = {}
    for format in FORMATS:
        keys, values = (dequantize_vectors(quantize_vectors(each, format)) for each in (k, v))
        found = F.scaled_dot_product_attention(q, keys, values, is_causal=True)
        errors[format] = float((found - exact).norm() / exact.norm())
    assert errors["int8"] < errors["fp8"] < errors["int4"] < 0.2 and errors["int8"] < 0.01


def test_bytes_and_requests():
    assert [bytes_a_vector(64, each) for each in ("int8", "fp8", "int4", None)] == [66, 66, 34, 128]
    with pytest.raises(ValueError, match="cache format 'int3' is unknown; choose one of int8, int4, fp8"):
        check_format("int3", 64)
    with pytest.raises(ValueError, match="head_dim=3 is odd"):
        quantize_vectors(torch.ones(2, 3), "int4")
