"""The list of a step's operations against counts made by hand, and the roofline's sum over it."""

from __future__ import annotations

import time

import pytest
import torch
from llm_core.config import GPTConfig
from llm_core.costs.counts import flops_per_token
from llm_precision.levers import Levers, build_step
from llm_precision.operations import ATTENTION, PRODUCTS, REST, Operation, fused, operations_of, predicted_seconds
from llm_precision.roofline import Ceilings
from torch.nn import functional as F


def test_products_sums_and_views():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    found = operations_of(lambda: (a @ b).relu_().view(15).unsqueeze(0), weights=[b])
    assert [each[:6] for each in found] == [
        ("mm", PRODUCTS, 2 * 3 * 4 * 5, 4 * (12 + 20 + 15), 4 * 20, "float32"),
        ("relu_", REST, 0, 4 * (15 + 15), 0, "float32"),  # read and written in place; the views cost nothing
    ]


def test_a_filled_or_copied_tensor_is_written_and_not_read():
    target, source = torch.empty(100), torch.randn(100)
    moved = [each.moved for each in operations_of(lambda: (target.fill_(1.0), target.copy_(source)))]
    assert moved == [400, 800]


def test_an_expanded_tensor_lies_in_memory_once():
    row = torch.randn(1, 10).expand(50, 10)
    (found,) = operations_of(lambda: row + 1.0)
    assert found.moved == 4 * (10 + 500)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_forward_and_backward(causal):
    q, k, v = (torch.randn(2, 3, 64, 16, requires_grad=True) for _ in range(3))
    found = operations_of(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward())
    flops = [each.flops for each in found if each.kind == ATTENTION]
    whole = 2 * 2 * 3 * 64 * 64 * 16
    assert flops == [round(each * whole * (65 / 128 if causal else 1)) for each in (2, 5)]


def test_a_steps_products_are_those_of_module_threes_formula():
    config = GPTConfig(
        96, 32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64
    )  # fmt: skip
    ids = torch.randint(96, (2, 64))
    for levers, more in ((Levers(), 0), (Levers(attention="naive"), 0), (Levers(accumulate=2), 1)):
        found = operations_of(build_step(config, levers, [ids], "cpu"))
        products = sum(each.flops for each in found if each.kind == PRODUCTS)
        attention = 12 * 2 * 32 * 64 * (levers.attention == "auto")  # of the formula; the table's are products
        assert products == (1 + more) * 128 * (flops_per_token(config, 64) - attention)
        assert all(each.dtype == "float32" for each in found if each.kind != REST)


def test_the_seconds_of_a_sleeping_operation_are_measured(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    assert [each.seconds for each in operations_of(lambda: torch.ones(3) + 1)] == [1.0, 1.0]


def test_each_operation_takes_its_products_its_bytes_or_a_launch():
    ceilings = Ceilings(bandwidth=100.0, launch=0.5, rates={"float32": 1000.0, "bfloat16": 4000.0})
    listed = [
        Operation("mm", PRODUCTS, 4000, 100, 40, "bfloat16", 0.0),
        Operation("mm", PRODUCTS, 100, 300, 0, "float32", 0.0),
        Operation("attention", ATTENTION, 2000, 50, 0, "float32", 0.0), Operation("add", REST, 0, 10, 0, "int64", 0.0),
    ]  # fmt: skip
    assert predicted_seconds(listed, ceilings) == {PRODUCTS: 1.0 + 3.0, ATTENTION: 2.0, REST: 0.5}
    # Fused: the sum before the last product goes, and beside each product stand the bytes that it reads and writes, its
    # weights left out. The sum after it stays.
    whole = [listed[3], *listed]
    assert predicted_seconds(fused(whole), ceilings)[REST] == pytest.approx(0.6 + 3.0 + 0.5 + 0.5)
    assert [each.name for each in fused(whole)] == ["mm", "mm", "attention", "fused", "fused", "fused", "add"]
    with pytest.raises(KeyError):
        predicted_seconds([Operation("mm", PRODUCTS, 1, 1, 0, "float8_e4m3fn", 0.0)], ceilings)
