"""`quantization_config`: what a folder says in its config.json of its quantised weights, in compressed-tensors' words.

transformers and vLLM read these words. Of a folder of somebody else's, a key that is absent means what
compressed-tensors takes it for, and one that would change the numbers and is not known here is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from llm_serve.quantization.fp8 import Fp8Scheme
from llm_serve.quantization.rounding import WeightScheme
from llm_serve.quantization.smooth import Int8Scheme

Scheme = WeightScheme | Int8Scheme | Fp8Scheme
PACKED, INTEGERS, FLOATS, WEIGHTS_ONLY = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"
# What must be absent, or one of these values, where it stands.
PLAIN: dict[str, tuple[Any, ...]] = {
    "quant_method": ("compressed-tensors",), "quantization_status": ("compressed",), "kv_cache_scheme": (None,),
    "sparsity_config": (None, {}), "transform_config": (None, {}),
}  # fmt: skip
HARMLESS = {"config_groups", "ignore", "format", "version", "global_compression_ratio"}
# Of weights and activations. How a scale was found, or in which order, says nothing of what the numbers stand for.
PLAIN_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "block_structure": (None,),
    "actorder": (None, False, "weight", "static"),
}
HARMLESS_ARGUMENTS = {
    "num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "observer", "observer_kwargs", "scale_dtype",
    "zp_dtype",
}  # fmt: skip
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def to_config(scheme: Scheme, ignore: Iterable[str]) -> dict[str, Any]:
    """The `quantization_config` of a model whose linear layers have a scheme, but for those to `ignore`."""
    activations: dict[str, Any] | None = None
    if isinstance(scheme, WeightScheme):
        name = PACKED
        weights = _arguments(scheme.bits, "int", scheme.symmetric, "channel" if scheme.group_size is None else "group")
        weights["group_size"] = scheme.group_size
        if scheme.actorder:
            weights["actorder"] = "weight"
    elif isinstance(scheme, Int8Scheme):
        name, weights = INTEGERS, _arguments(8, "int", True, "channel")
        activations = _arguments(8, "int", True, "token", dynamic=True)
    else:
        name, weights = FLOATS, _arguments(8, "float", True, scheme.weights)
        if scheme.activations is None:
            name = WEIGHTS_ONLY
        else:
            activations = _arguments(8, "float", True, scheme.activations, dynamic=scheme.activations == "token")
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": name, "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": name}}, "ignore": list(ignore), "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }  # fmt: skip


def from_config(settings: dict[str, Any]) -> Scheme:
    """The scheme that a `quantization_config` stands for.

    Raises:
        ValueError: for a format, or a setting, that is not done here, with its name.
    """
    _refuse(settings, PLAIN, HARMLESS, "")
    groups = settings.get("config_groups") or {}
    if len(groups) != 1:
        raise ValueError(f"config_groups has {len(groups)} groups, and one scheme for all layers is read here")
    (group,) = groups.values()
    if group.get("targets") != ["Linear"]:
        raise ValueError(f"targets={group.get('targets')!r}: only ['Linear'] is read here")
    known = {"output_activations": (None,), "format": (None, settings.get("format"))}
    _refuse(group, known, {"targets", "weights", "input_activations"}, "")
    weights, activations = group.get("weights") or {}, group.get("input_activations")
    _refuse(weights, {**PLAIN_ARGUMENTS, "dynamic": (None, False)}, HARMLESS_ARGUMENTS - {"dynamic"}, "weights.")
    _refuse(activations or {}, PLAIN_ARGUMENTS, HARMLESS_ARGUMENTS, "input_activations.")
    form, symmetric = settings.get("format"), weights.get("symmetric", True)
    what: tuple[Any, str, Any] = (form, weights.get("type", "int"), _strategy(weights))
    if form == PACKED and what[1:] in (("int", "group"), ("int", "channel")) and activations is None:
        size = weights.get("group_size")
        return WeightScheme(
            weights.get("num_bits", 8), symmetric, None if what[2] == "channel" else size,
            actorder=weights.get("actorder") in ("weight", "static"),
        )  # fmt: skip
    eight = weights.get("num_bits", 8) == 8 and symmetric
    if what == (INTEGERS, "int", "channel") and eight and _means(activations, TOKENS):
        return Int8Scheme(alpha=None)  # what was folded in is in the weights
    if form in (FLOATS, WEIGHTS_ONLY) and what[1] == "float" and what[2] in ("tensor", "channel") and eight:
        if activations is None:
            return Fp8Scheme(what[2], None)
        for kind in ("token", "tensor"):
            if _means(activations, {**TOKENS, "type": "float", "strategy": kind, "dynamic": kind == "token"}):
                return Fp8Scheme(what[2], kind)
    said = f"{weights.get('num_bits', 8)} bits, {what[1]}, {what[2]}, activations {activations}"
    raise ValueError(f"format {form!r} with weights of {said} is not read here; load the folder with transformers")


def ignored(name: str, ignore: Iterable[str]) -> bool:
    """Whether a layer is left out: by its path, the name of its class, or a pattern after "re:"."""
    return any(
        re.match(each[3:], name) is not None if each.startswith("re:") else each in (name, "Linear") for each in ignore
    )


def _arguments(bits: int, kind: str, symmetric: bool, strategy: str, dynamic: bool = False) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy, "dynamic": dynamic}


def _strategy(arguments: dict[str, Any]) -> Any:
    """As compressed-tensors infers it from the group size where it is not said."""
    size = arguments.get("group_size")
    return arguments.get("strategy") or ("tensor" if size is None else "channel" if size == -1 else "group")


def _means(arguments: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    defaults = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
    return (
        arguments is not None and {**defaults, **arguments, "strategy": _strategy(arguments)}.items() >= wanted.items()
    )


def _refuse(found: dict[str, Any], plain: dict[str, tuple[Any, ...]], harmless: set[str], prefix: str) -> None:
    for key, value in found.items():
        if key not in harmless and value not in plain.get(key, ()):
            known = f"only {', '.join(map(repr, plain[key]))} is read here" if key in plain else "this key is not known"
            raise ValueError(f"{prefix}{key}={value!r}: {known}; load the folder with transformers")
