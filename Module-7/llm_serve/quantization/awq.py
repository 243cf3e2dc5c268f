"""AWQ: give the channels with large inputs larger weights before rounding, and divide their inputs by as much.

A weight that is multiplied by s > 1 is rounded in steps that are about as large as before; divided by s afterwards, its
error is smaller by that factor, at the cost of the others of its group when it becomes their largest. How far to go is
searched. Lin et al. 2023 (arXiv:2306.00978), equations 4 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llm_serve.quantization.calibration import Moments
from llm_serve.quantization.fold import Fold
from llm_serve.quantization.gptq import output_error
from llm_serve.quantization.rounding import WeightScheme, round_to_nearest

ALPHAS = tuple(step / 20 for step in range(20))


class Search(NamedTuple):
    """What a search found.

    Attributes:
        alpha: of the scale mean|x|^alpha.
        scale: of each channel of the fold's source.
        losses: the error of the layers' outputs for each alpha that was tried.
    """

    alpha: float
    scale: Float[Tensor, " channels"]
    losses: dict[float, float]


def channel_scale(mean_size: Float[Tensor, " channels"], alpha: float) -> Float[Tensor, " channels"]:
    """mean|x|^alpha, divided so that the largest and the smallest are each other's reciprocals.

    A channel whose inputs are all 0 counts as the smallest of the others: no weight of it matters, and it must not
    decide how the rest is divided.
    """
    alive = mean_size > 0
    floor = mean_size[alive].min() if bool(alive.any()) else torch.ones((), dtype=mean_size.dtype)
    scale = mean_size.clamp(min=floor).pow(alpha).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


def search_scale(
    fold: Fold, moments: Moments, scheme: WeightScheme, alphas: Sequence[float] = ALPHAS, only: Sequence[str] = ()
) -> Search:
    """Try each alpha: scale, round to nearest, scale back, and take the error of the outputs, tr(D H D^T).

    Alpha 0 scales nothing, so that the best is never worse than rounding to nearest on these inputs.

    Args:
        fold: the layers that share their inputs.
        moments: of those inputs.
        scheme: of the integers.
        alphas: to try.
        only: the layers that will be quantised, if not all of the fold.
    """
    hessian, mean_size = moments.hessian.float(), fold.narrow(moments.mean_size)
    weights = [layer.weight.detach().float() for name, layer in fold.layers.items() if not only or name in only]
    losses, scales = {}, {}
    for alpha in alphas:
        scales[alpha] = channel_scale(mean_size, alpha).float()
        wide = fold.widen(scales[alpha])
        losses[alpha] = sum(
            output_error(round_to_nearest(weight * wide, scheme).dequantize() / wide - weight, hessian)
            for weight in weights
        )
    best = min(losses, key=lambda alpha: losses[alpha])
    return Search(best, scales[best], losses)
