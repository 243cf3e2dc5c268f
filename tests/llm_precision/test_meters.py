"""Each meter against something known: a sleep, tensors of known size, products of known FLOPs."""

from __future__ import annotations

import time

import pytest
import torch
from llm_precision import roofline
from llm_precision.benchmark import Row, Unsupported, Variant, benchmark, table
from llm_precision.meters import Seconds, count_flops, held_and_peak, interleaved, seconds_of, utilisation
from llm_precision.roofline import Ceilings

MIB = 2**20


def ones(mib: float) -> torch.Tensor:
    return torch.ones(int(mib * MIB / 4))


def test_a_sleep_takes_its_time():
    assert 0.02 <= seconds_of(lambda: time.sleep(0.02)) < 0.06
    assert 0.02 <= seconds_of(lambda: time.sleep(0.02), repeats=3) < 0.06


def test_turns_are_interleaved_and_the_warm_up_is_dropped():
    calls: list[str] = []
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = interleaved(works, rounds=2, warmup=1, repeats=2)
    assert "".join(calls) == "aabb" * 3
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2}


def test_the_median_and_the_quartiles():
    seconds = Seconds.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert seconds == (3.0, 2.0, 4.0) and seconds.spread == pytest.approx(2 / 3)
    assert Seconds.of([7.0]) == (7.0, 7.0, 7.0)


def test_held_and_peak_are_those_of_known_tensors():
    def build():
        kept = [ones(4)]
        first = []

        def work():
            if not first:
                first.append(ones(2))  # a lasting state, made in the first step
            passing = ones(8)
            more = ones(1)
            del passing
            return more.sum() + kept[0][0]

        return work

    _, held, peak = held_and_peak(build)
    assert held == pytest.approx(6 * MIB, abs=1024)
    assert peak == pytest.approx((6 + 9) * MIB, abs=1024)


def test_flops_of_a_product_forward_and_backward():
    a, b = (torch.empty(3, 4, device="meta", requires_grad=True), torch.empty(4, 5, device="meta", requires_grad=True))
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5
    assert count_flops(lambda: (a @ b).sum().backward()) == 3 * 2 * 3 * 4 * 5


def test_the_utilisation():
    assert utilisation(50e12, 0.1, 1000e12) == 0.5
    assert utilisation(1, 1, None) is None


def test_a_benchmark_knows_a_sleep_an_allocation_and_a_loss():
    def sleeper(seconds: float, mib: float):
        def build():
            kept = ones(mib)

            def step():
                ones(2 * mib)
                time.sleep(seconds)
                return kept[0] * 3

            return step

        return build

    rows = benchmark([Variant("a", sleeper(0.02, 1), tokens=100, flops=1e6), Variant("b", sleeper(0.04, 2))], rounds=3,
                     peak_flops=1e9)  # fmt: skip
    a, b = rows
    assert a.seconds is not None and b.seconds is not None
    assert 0.02 <= a.seconds.median < 0.03 and 0.04 <= b.seconds.median < 0.055
    assert (a.held, a.peak) == (pytest.approx(MIB, abs=512), pytest.approx(3 * MIB, abs=512))
    assert b.peak == pytest.approx(6 * MIB, abs=512) and a.loss == 3.0
    assert a.tokens_per_second == pytest.approx(100 / a.seconds.median)
    assert a.utilisation == pytest.approx(1e6 / a.seconds.median / 1e9) and b.utilisation is None
    assert a.record()["seconds"]["median"] == a.seconds.median and "missing" not in a.record()


def test_a_variant_that_cannot_run_is_a_row_that_says_why():
    def no_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    def no_kernel():
        raise Unsupported("a kernel for GPUs")

    def no_backward():
        def step():
            raise NotImplementedError("no backward on CPU\nsecond line")

        return step

    fine = Variant("fine", lambda: lambda: 1.0)
    rows = benchmark([Variant("m", no_memory), Variant("k", no_kernel), Variant("b", no_backward), fine], rounds=1)
    assert [row.missing for row in rows] == [
        "out of memory", "a kernel for GPUs", "not supported: NotImplementedError: no backward on CPU", ""
    ]  # fmt: skip
    assert rows[0].record() == {"name": "m", "missing": "out of memory"}
    lines = table(rows, "fine").splitlines()
    assert lines[1].endswith("out of memory") and "1.00" in lines[4]


def test_a_mistake_in_a_variant_is_no_row():
    with pytest.raises(TypeError):
        benchmark([Variant("typo", lambda: lambda: len(3))])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="different names"):
        benchmark([Variant("a", lambda: lambda: 0.0), Variant("a", lambda: lambda: 0.0)])


def test_the_table_compares_tokens_not_steps():
    base = Row("one", Seconds(1.0, 1.0, 1.0), 0, 0, 1.0, tokens_per_second=10)
    two = Row("two batches", Seconds(2.0, 2.0, 2.0), 0, 0, 1.0, tokens_per_second=20)
    assert " 2.00 " in table([base, two]).splitlines()[2]
    assert " 0.50 " in table([base, two], "two batches").splitlines()[1]


def test_the_roofline_is_the_slower_of_products_bytes_and_launches():
    device = Ceilings(bandwidth=100.0, launch=0.5, rates={"float32": 1000.0, "bfloat16": 4000.0})
    assert device.seconds(2000, 100, "float32") == 2.0
    assert device.seconds(2000, 100, "bfloat16") == 1.0
    assert device.seconds(2000, 400, "bfloat16") == 4.0
    assert device.seconds(2000, 100, "bfloat16", operations=7) == 3.5
    assert device.ridge("float32") == 10.0
    with pytest.raises(KeyError):
        device.seconds(1, 1, "float8")


def test_the_ceilings_count_two_flops_a_multiplication_and_bytes_read_and_written(monkeypatch):
    seen = {}

    def known(works, device, rounds, warmup, repeats):
        seen.update({name: work() for name, work in works.items()})
        return {name: [2.0] * rounds for name in works}

    monkeypatch.setattr(roofline, "interleaved", known)
    assert roofline.matmul_rate("cpu", torch.float32, 10) == 2 * 10**3 / 2.0
    assert len(seen) == 3 and all(each.shape == (10, 10) and each.abs().max() > 0 for each in seen.values())
    assert roofline.copy_bandwidth("cpu", 4000) == 2 * 4000 / 2.0
    assert seen["copy"].numel() == 1000


def test_this_machines_ceilings_are_numbers_above_zero():
    found = roofline.measure_ceilings("cpu", 64, MIB, {"float32": torch.float32})
    assert found.rates["float32"] > 1e6 and found.bandwidth > 1e6 and 1e-8 < found.launch < 1e-3
