"""Matrix products of eight-bit numbers with scales, forward and backward, emulated in float32.

What a GPU's FP8 units do: both factors are scaled so that they fill the format, rounded to it, multiplied with sums in
more bits, and the scales divided out. Here the rounded factors are multiplied in float32, so that it runs anywhere.
Micikevicius et al. 2022, sections 3 and 4; the two recipes are torchao's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_precision.numbers.formats import E4M3, E5M2, Format, cast

Matrix = Float[Tensor, "rows columns"]


@dataclass(frozen=True)
class Recipe:
    """How factors are scaled.

    Attributes:
        by_row: a scale for each row of the left factor and each column of the right one; else one for a whole matrix.
        forward: format of inputs and weights.
        backward: format of the gradients that come back.
        power_of_two: scales are rounded down to powers of two, which change no mantissa.
    """

    by_row: bool
    forward: Format = E4M3
    backward: Format = E5M2
    power_of_two: bool = False


TENSORWISE = Recipe(by_row=False)
ROWWISE = Recipe(by_row=True, backward=E4M3, power_of_two=True)


def scale_and_round(x: Matrix, format: Format, recipe: Recipe, dim: int) -> Matrix:
    """The matrix as its eight-bit form stands for it: scaled to fill the format, rounded, scaled back.

    Args:
        x: float32.
        format: to round to.
        recipe: of the scale.
        dim: along which the product sums; with `by_row` the numbers along it share a scale.
    """
    largest = x.abs().amax(dim=dim, keepdim=True) if recipe.by_row else x.abs().amax()
    scale = (format.max / largest.double().clamp(min=1e-12)).float()
    if recipe.power_of_two:
        scale = torch.exp2(scale.log2().floor())
    return cast(x * scale, format, saturate=True) / scale


def scaled_product(
    a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"], formats: tuple[Format, Format], recipe: Recipe
) -> Matrix:
    """a @ b with each factor rounded to its format."""
    return scale_and_round(a, formats[0], recipe, dim=1) @ scale_and_round(b, formats[1], recipe, dim=0)


class _ScaledLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, recipe: Recipe) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.recipe = recipe
        return scaled_product(x, weight.T, (recipe.forward, recipe.forward), recipe)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (grad,), recipe = upstream, ctx.recipe
        # Each product rounds its factors anew: the scales run along what it sums over.
        to_x = scaled_product(grad, weight, (recipe.backward, recipe.forward), recipe)
        to_weight = scaled_product(grad.T, x, (recipe.backward, recipe.forward), recipe)
        return to_x, to_weight, None


class ScaledLinear(nn.Linear):
    """`nn.Linear` whose three products, one forward and two backward, take eight-bit factors.

    The weights themselves stay in float32, and so do the bias and the optimiser.
    """

    recipe = TENSORWISE

    def forward(self, input: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        flat = input.reshape(-1, self.in_features)
        out: Tensor = _ScaledLinear.apply(flat, self.weight, self.recipe)
        out = out.reshape(*input.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def with_scaled_products(model: nn.Module, recipe: Recipe = TENSORWISE, leave: tuple[str, ...] = ("lm_head",)) -> None:
    """Let every `nn.Linear` of a model multiply in eight bits, in place; its parameters stay the same objects.

    Args:
        model: changed in place.
        recipe: of the scales.
        leave: names of layers, or ends of names, that stay as they are: the head, by custom.
    """
    for name, module in model.named_modules():
        if type(module) is nn.Linear and not name.endswith(leave):
            module.__class__ = ScaledLinear
            module.recipe = recipe  # type: ignore[assignment]
