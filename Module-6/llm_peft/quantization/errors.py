"""What rounding to four bits costs a weight: the mean error, from an integral for a normal weight, and measured.

A format is a table of its values from -1 to 1; each block of weights is divided by its largest magnitude first.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from llm_peft.quantization.blocks import nearest, scale_blocks
from llm_peft.quantization.nf4 import nf4_table

# Twelfths: E2M1's values, but for the smallest, which would be 1 and is 1/16 in bitsandbytes.
HALF_OF_FP4 = (0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


def tables() -> dict[str, Float[Tensor, " values"]]:
    """The values of each format: "int4" even steps, "fp4" a float with two bits of exponent, "nf4" quantiles."""
    half = torch.tensor(HALF_OF_FP4) / 12
    return {
        "int4": torch.arange(-7, 8) / 7,
        "fp4": torch.cat([-half.flip(0), torch.zeros(1), half]),
        "nf4": nf4_table(),
    }


def rounded(values: Float[Tensor, "*shape"], table: Float[Tensor, " values"], size: int = 64) -> Tensor:
    """What is left of each value when it is rounded to a table, in blocks of `size`."""
    scaled, absmax = scale_blocks(values.reshape(-1), size)
    return (table[nearest(scaled, table)] * absmax[:, None]).view(-1)[: values.numel()].view(values.shape)


def mean_error(values: Float[Tensor, "*shape"], table: Float[Tensor, " values"], size: int = 64) -> float:
    """The mean of |w - rounded w| over the standard deviation of w: what a normal weight of size 1 would have."""
    return float((values - rounded(values, table, size)).abs().mean() / values.std())


def expected_error(table: Float[Tensor, " values"], size: int = 64, steps: int = 2_000) -> float:
    """The same for weights that are N(0, 1), by an integral.

    The largest of `size` magnitudes is m with the density of a maximum, size · F(m)^(size - 1) · f(m), where F and f
    belong to |w|. It has no error itself; each of the others is normal, cut off at -m and m.
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    largest = 6 * middles  # a larger one has a probability of 1e-7
    inside, density = 2 * normal.cdf(largest) - 1, 2 * normal.log_prob(largest).exp()
    weights = size * inside ** (size - 1) * density
    shares = 2 * middles - 1  # of the largest, from -1 to 1
    gaps = (shares - table.double()[nearest(shares, table.double())]).abs()
    at = shares[:, None] * largest  # (shares, largest)
    errors = (gaps[:, None] * largest * normal.log_prob(at).exp()).sum(0) * (2 / steps) * largest / inside
    return float((errors * weights).sum() * (6 / steps) * (size - 1) / size)
