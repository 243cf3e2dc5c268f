"""The two ceilings of a device, measured, and what they predict: no work is done sooner than its products or its bytes.

Williams et al. 2009: seconds >= max(FLOPs / rate of products, bytes / bandwidth).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from llm_precision.meters import interleaved, seconds_of


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches at its best, measured on it.

    Attributes:
        rates: FLOP/s of a large matrix product, by the name of its factors' dtype ("float32", "bfloat16", "tf32" ...).
        bandwidth: bytes/s of a large copy, those read and those written.
        launch: seconds of the smallest operation: what each operation costs beside its work.
    """

    bandwidth: float
    launch: float
    rates: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, flops: float, moved: float, dtype: str, operations: int = 0) -> float:
        """The least seconds of work with so many FLOPs and bytes moved, in so many operations.

        Raises:
            KeyError: for a dtype whose rate was not measured.
        """
        return max(flops / self.rates[dtype], moved / self.bandwidth, operations * self.launch)

    def ridge(self, dtype: str) -> float:
        """FLOPs a byte above which products are the bound, below which the bytes are."""
        return self.rates[dtype] / self.bandwidth


def matmul_rate(
    device: str, dtype: torch.dtype, size: int, rounds: int = 5, tf32: bool = False, zeros: bool = False
) -> float:
    """FLOP/s of a linear layer's three products, all matrices size x size; the median of the rounds.

    They are x W^T, and in the backward pass g W and g^T x: a CPU's library is not equally good at the three.

    Args:
        zeros: in place of random numbers. On a GPU that may be faster: `course record` measures both.
    """
    fill = torch.zeros if zeros else torch.randn
    x, weight, grad = (fill(size, size, device=device).to(dtype) for _ in range(3))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        repeats = 20 if device.startswith("cuda") else 1
        works = {"forward": lambda: x @ weight.T, "to x": lambda: grad @ weight, "to W": lambda: grad.T @ x}
        times = interleaved(works, device, rounds, 1, repeats)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return len(works) * 2 * size**3 / sum(map(statistics.median, times.values()))


def copy_bandwidth(device: str, size: int, rounds: int = 5) -> float:
    """Bytes/s of a copy of `size` bytes, counting those read and those written; the median of the rounds.

    `size` should be several times the last cache, or the cache is measured.
    """
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    repeats = 10 if device.startswith("cuda") else 1
    times = interleaved({"copy": lambda: target.copy_(source)}, device, rounds, 2, repeats)["copy"]
    return 2 * source.numel() * 4 / statistics.median(times)


def read_bandwidth(device: str, size: int, width: int, rounds: int = 5) -> float:
    """Bytes/s at which a matrix-vector product reads its matrix of float32 numbers; the median of the rounds.

    A copy's bandwidth is another number: it also writes, and computes nothing. A CPU's product reads short rows more
    slowly than long ones.

    Args:
        device: "cpu" or "cuda".
        size: bytes of the matrix, several times the last cache, or the cache is measured.
        width: numbers of a row, as wide as in the products that are to be predicted.

    Raises:
        ValueError: for a matrix without a whole row.
    """
    if not 1 <= width <= size // 4:
        raise ValueError(f"width={width} must be from 1 to {size // 4}, the numbers of {size} bytes")
    matrix, x = torch.randn(size // 4 // width, width, device=device), torch.randn(1, width, device=device)
    repeats = 10 if device.startswith("cuda") else 1
    times = interleaved({"read": lambda: F.linear(x, matrix)}, device, rounds, 2, repeats)["read"]
    return matrix.nbytes / statistics.median(times)


def launch_seconds(device: str, operations: int = 2000) -> float:
    """Seconds of an operation on one number: none of its time is work."""
    one = torch.ones(1, device=device)

    def many() -> None:
        for _ in range(operations):
            one.add_(1.0)

    many()
    return min(seconds_of(many, device) for _ in range(5)) / operations


def measure_ceilings(device: str, size: int, bytes_copied: int, dtypes: Mapping[str, torch.dtype]) -> Ceilings:
    """Measure a device's ceilings.

    Args:
        device: "cpu" or "cuda".
        size: of the square matrices; large enough to be bound by products.
        bytes_copied: of the copy.
        dtypes: of the factors, by name; "tf32" is float32 with its products in that precision.
    """
    rates = {name: matmul_rate(device, dtype, size, tf32=name == "tf32") for name, dtype in dtypes.items()}
    return Ceilings(copy_bandwidth(device, bytes_copied), launch_seconds(device), rates)
