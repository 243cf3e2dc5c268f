"""`quantize`: a model's linear layers in fewer bits, by the name of a method."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from llm_peft.lora.inject import find_targets
from llm_peft.quantization.linear import NF4Linear
from torch import Tensor, nn

from llm_serve.quantization.awq import search_scale
from llm_serve.quantization.calibration import Moments, Walk
from llm_serve.quantization.fold import Fold, folds_of
from llm_serve.quantization.formats import Scheme
from llm_serve.quantization.fp8 import Fp8Linear, Fp8Scheme, weight_to_fp8
from llm_serve.quantization.gptq import Order, gptq, output_error, rounding_order
from llm_serve.quantization.linear import IntLinear
from llm_serve.quantization.rounding import WeightScheme, round_to_nearest
from llm_serve.quantization.smooth import CHANNEL, Int8Linear, Int8Scheme, smooth_scale

SCHEMES: dict[str, type[Scheme] | None] = {
    "rtn": WeightScheme, "gptq": WeightScheme, "awq": WeightScheme, "smoothquant": Int8Scheme, "fp8": Fp8Scheme,
    "nf4": None,
}  # fmt: skip
FEWEST = 256  # calibration tokens: fewer say little of any channel


@dataclass(frozen=True)
class LayerError:
    """What quantisation did to a layer.

    Attributes:
        name: path of the layer.
        bits: of a weight, its share of scales included, as they are in memory.
        weight_error: |change of W| / |W|.
        output_error: |change of W x| / |W x| over the calibration inputs, rounding of activations apart; None without
            calibration.
    """

    name: str
    bits: float
    weight_error: float
    output_error: float | None


@dataclass(frozen=True)
class QuantizedModel:
    """A model with quantised layers.

    Attributes:
        model: a copy; the one that was given is as it was.
        method, scheme: by which.
        layers: each quantised layer, in the model's order.
    """

    model: nn.Module
    method: str
    scheme: Scheme | None
    layers: tuple[LayerError, ...]


@torch.no_grad()
def quantize(
    model: nn.Module, method: str = "rtn", scheme: Scheme | None = None,
    calibration: Int[Tensor, "rows time"] | None = None, target_modules: tuple[str, ...] | str = "all-linear",
) -> QuantizedModel:  # fmt: skip
    """Quantise the linear layers of a model, all but the head by default.

    Args:
        model: our `GPT`, or a causal model of transformers.
        method: "rtn", "gptq" or "awq" for integers of weights alone; "smoothquant" for eight bits of weights and
            activations; "fp8"; "nf4".
        scheme: `WeightScheme` for the first three, `Int8Scheme`, `Fp8Scheme`; None for that class's defaults, and for
            "nf4", which has none.
        calibration: rows of tokens, see `calibration.text_rows`. With them each layer's output error is measured too.
        target_modules: as for `llm_peft.lora.inject.find_targets`.

    Raises:
        ValueError: for an unknown method, a scheme that is not its own, a layer that the scheme does not fit,
            calibration that is missing or too short, and numbers that are not finite, with the layer's name.
    """
    scheme = _checked_scheme(method, scheme)
    names = find_targets(model, target_modules)
    _check_layers(model, names, scheme)
    _check_calibration(method, scheme, calibration)
    changed = copy.deepcopy(model).eval()
    errors: dict[str, LayerError] = {}
    if calibration is None:
        for name in names:
            errors[name] = _replace(changed, name, method, scheme, None, {})
        return QuantizedModel(changed, method, scheme, tuple(errors.values()))
    walk = Walk(changed, calibration)
    for name in names:
        if not name.startswith(f"{walk.name}."):
            raise ValueError(
                f"{name} is outside the blocks ({walk.name}), which calibration walks through; leave it out"
            )
    for number, block in enumerate(walk.blocks):
        prefix = f"{walk.name}.{number}."
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        moments = _moments_after_folding(walk, block, inside, method, scheme)
        orders: dict[int, Order] = {}
        for name in inside:
            path = prefix + name
            errors[path] = _replace(changed, path, method, scheme, moments[name], orders)
        walk.advance(block)
    return QuantizedModel(changed, method, scheme, tuple(errors[name] for name in names))


@torch.no_grad()
def written_out(model: nn.Module) -> nn.Module:
    """A copy with ordinary linear layers that hold the quantised weights as numbers: faster here, and as large as it
    was. Activations are not rounded in it."""
    plain = copy.deepcopy(model)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, (IntLinear, Int8Linear, Fp8Linear, NF4Linear)):
            linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            linear.weight = nn.Parameter(layer.dequantize(), requires_grad=False)
            if layer.bias is not None:
                linear.bias = layer.bias
            plain.set_submodule(name, linear)
    return plain


def _checked_scheme(method: str, scheme: Scheme | None) -> Scheme | None:
    if method not in SCHEMES:
        raise ValueError(f"method {method!r} is unknown; choose one of {', '.join(SCHEMES)}")
    kind = SCHEMES[method]
    if scheme is None:
        return None if kind is None else kind()
    if kind is None or not isinstance(scheme, kind):
        wanted = "takes no scheme" if kind is None else f"takes a {kind.__name__}"
        raise ValueError(f"method {method!r} {wanted}, and was given a {type(scheme).__name__}")
    return scheme


def _check_layers(model: nn.Module, names: list[str], scheme: Scheme | None) -> None:
    """Before anything is copied or computed."""
    for name in names:
        layer = model.get_submodule(name)
        if type(layer) is not nn.Linear:
            raise ValueError(f"{name} is a {type(layer).__name__}, and only nn.Linear is quantised here")
        if not bool(torch.isfinite(layer.weight).all()):
            raise ValueError(f"{name} has weights that are not finite; quantise a model that is whole")
        try:
            if isinstance(scheme, WeightScheme):
                scheme.groups(layer.in_features)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _check_calibration(method: str, scheme: Scheme | None, ids: Tensor | None) -> None:
    needed = method in ("gptq", "awq")
    needed = needed or (isinstance(scheme, Int8Scheme) and scheme.alpha is not None)
    needed = needed or (isinstance(scheme, Fp8Scheme) and scheme.activations == "tensor")
    if needed and ids is None:
        raise ValueError(f"method {method!r} with {scheme} needs calibration rows; make some with text_rows")
    if ids is not None and ids.numel() < FEWEST:
        raise ValueError(f"calibration has {ids.numel()} tokens; give {FEWEST} or more, better some thousands")


def _moments_after_folding(
    walk: Walk, block: nn.Module, inside: list[str], method: str, scheme: Scheme | None
) -> dict[str, Moments]:
    """What the layers of a block are given, after scales were folded into it where the method does that."""
    folds: list[Fold] = []
    if method == "awq" or (isinstance(scheme, Int8Scheme) and scheme.alpha is not None):
        # A fold without a layer that is quantised would change nothing that is rounded.
        folds = [fold for fold in folds_of(block, _head_dim(walk.model)) if any(name in inside for name in fold.layers)]
    watched = {name: block.get_submodule(name) for name in (*inside, *(name for fold in folds for name in fold.layers))}
    moments = walk.moments(block, watched)
    if not folds:
        return moments
    (before,) = walk.outputs(block, 1)
    for fold in folds:
        seen = moments[next(iter(fold.layers))]
        if isinstance(scheme, WeightScheme):
            scale = search_scale(fold, seen, scheme, only=inside).scale
        else:
            assert isinstance(scheme, Int8Scheme) and scheme.alpha is not None
            scale = smooth_scale(fold, seen, scheme.alpha)
        fold.apply(scale)
        divided = seen.divided(fold.widen(scale))
        moments |= dict.fromkeys(fold.layers, divided)
    (after,) = walk.outputs(block, 1)
    # Rounding alone, in the dtype of the weights. More would be a norm of another formula, or one that is shared.
    most = max(1e-4, 8 * torch.finfo(before.dtype).eps)
    change = float((after - before).norm() / before.norm())
    if not change <= most:
        raise ValueError(
            f"folding scales into {type(block).__name__} changes its outputs by {change:.1g}; take rtn or gptq"
        )
    return moments


def _head_dim(model: nn.Module) -> int:
    config: Any = model.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _replace(
    model: nn.Module, name: str, method: str, scheme: Scheme | None, moments: Moments | None, orders: dict[int, Order]
) -> LayerError:
    layer: Any = model.get_submodule(name)
    try:
        made = _quantized(layer, method, scheme, moments, orders)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    before = layer.weight.detach().float()
    change = made.dequantize().float() - before
    held = sum(values.nbytes for part, values in made.named_buffers() if part not in ("weight_shape", "input_scale"))
    relative = None
    if moments is not None:
        hessian = moments.hessian.float()
        whole = output_error(before, hessian)
        relative = math.sqrt(max(output_error(change, hessian), 0) / whole) if whole > 0 else 0.0
    model.set_submodule(name, made)
    return LayerError(name, 8 * held / before.numel(), float(change.norm() / before.norm()), relative)


def _quantized(
    layer: nn.Linear, method: str, scheme: Scheme | None, moments: Moments | None, orders: dict[int, Order]
) -> IntLinear | Int8Linear | Fp8Linear | NF4Linear:
    weight, bias = layer.weight.detach(), layer.bias
    if isinstance(scheme, Fp8Scheme):
        return Fp8Linear(
            weight_to_fp8(weight, scheme), scheme, None if moments is None else moments.largest.max(), bias
        )
    if isinstance(scheme, Int8Scheme):
        return Int8Linear(round_to_nearest(weight, CHANNEL), bias)
    if scheme is None:
        return NF4Linear(layer)
    if method != "gptq":  # AWQ has folded its scales in
        return IntLinear(round_to_nearest(weight, scheme), scheme, bias)
    assert moments is not None
    key = id(moments)  # layers with one input share its Hessian, and so its factor
    if key not in orders:
        orders[key] = rounding_order(moments.hessian, scheme)
    return IntLinear(gptq(weight, orders[key], scheme), scheme, bias)
