"""The card's ceilings: products by dtype, copies, and what an operation costs beside its work."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from course.record import Setting
from llm_precision.meters import interleaved
from llm_precision.roofline import copy_bandwidth, launch_seconds, matmul_rate


def measure(setting: Setting) -> Iterator[dict[str, Any]]:
    """A row each for products in float32, tf32, float16, bfloat16 and float8, for a copy, and for a launch."""
    device, size = setting.device, setting.pick(full=8192, toy=128)
    for name, dtype in (
        ("bfloat16", torch.bfloat16), ("float16", torch.float16), ("tf32", torch.float32), ("float32", torch.float32),
    ):  # fmt: skip
        rate = matmul_rate(device, dtype, size, tf32=name == "tf32")
        yield {"row": f"product, {name}", "size": size, "flops_per_second": rate}
    rate = matmul_rate(device, torch.bfloat16, size, zeros=True)
    yield {"row": "product, bfloat16, zeros", "size": size, "flops_per_second": rate}
    copied = setting.pick(full=2**32, toy=2**20)
    yield {"row": "copy", "bytes": copied, "bytes_per_second": copy_bandwidth(device, copied)}
    yield {"row": "launch", "seconds": launch_seconds(device)}
    if device == "cuda":
        yield {"row": "product, float8", "size": size, "flops_per_second": _float8(size)}


def _float8(size: int) -> float:
    """A product of E4M3 matrices with one scale each, its result in bfloat16."""
    kind = torch.float8_e4m3fn
    a, b = torch.randn(size, size, device="cuda").to(kind), torch.randn(size, size, device="cuda").to(kind).t()
    one = torch.ones((), device="cuda")

    def product() -> torch.Tensor:
        return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    times = interleaved({"product": product}, "cuda", 5, 1, 20)["product"]
    return 2 * size**3 / statistics.median(times)
