"""Two values or trees of values, element by element: how far apart they are, and where."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np


class Difference(Exception):
    """Two values differ in kind (type, shape, dtype, keys), so that no number says by how much."""


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def leaves(ours: Any, reference: Any, place: str, check_dtype: bool) -> Iterator[tuple[Any, Any, str]]:
    """Pairs of comparable leaves of two trees, each with its place; raises `Difference` where they part."""
    if dataclasses.is_dataclass(ours) and not isinstance(ours, type) and type(ours) is type(reference):
        fields = [field.name for field in dataclasses.fields(ours)]
        ours = {name: getattr(ours, name) for name in fields}
        reference = {name: getattr(reference, name) for name in fields}
    where = f" at {place}" if place else ""
    if isinstance(ours, Mapping) and isinstance(reference, Mapping):
        if set(ours) != set(reference):
            only = sorted(map(str, set(ours) ^ set(reference)))[:5]
            raise Difference(f"keys on one side only{where}: {', '.join(only)}")
        for key in reference:
            yield from leaves(ours[key], reference[key], f"{place}[{key!r}]", check_dtype)
    elif _is_sequence(ours) and _is_sequence(reference):
        if len(ours) != len(reference):
            raise Difference(f"lengths differ{where}: ours {len(ours)}, reference {len(reference)}")
        for index, (left, right) in enumerate(zip(ours, reference, strict=True)):
            yield from leaves(left, right, f"{place}[{index}]", check_dtype)
    elif any(value is None or isinstance(value, (str, bytes)) for value in (ours, reference)):
        if type(ours) is not type(reference) or ours != reference:
            raise Difference(f"values differ{where}: ours {shorten(ours)}, reference {shorten(reference)}")
        yield 0, 0, place
    else:
        left, right = _array(ours, place), _array(reference, place)
        if left.shape != right.shape:
            raise Difference(f"shapes differ{where}: ours {tuple(left.shape)}, reference {tuple(right.shape)}")
        if check_dtype and hasattr(ours, "dtype") and hasattr(reference, "dtype"):
            names = [str(value.dtype).removeprefix("torch.") for value in (ours, reference)]
            if names[0] != names[1]:
                raise Difference(f"dtypes differ{where}: ours {names[0]}, reference {names[1]}")
        yield left, right, place


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _array(value: Any, place: str) -> np.ndarray:
    """A tensor, array or number as a NumPy array of bool, int64, float64 or complex128."""
    if _is_tensor(value):
        value = value.detach()
        if value.is_sparse or hasattr(value, "full_tensor"):
            value = value.to_dense() if value.is_sparse else value.full_tensor()
        torch = sys.modules["torch"]
        value = value.cpu()
        # NumPy has no bfloat16; float64 holds every value of the smaller floats exactly.
        value = (value.to(torch.float64) if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    if array.dtype == np.uint64:
        return array
    for kind, wide in (("f", np.float64), ("c", np.complex128), ("iu", np.int64), ("b", np.bool_)):
        if array.dtype.kind in kind:
            return array.astype(wide)
    where = f" at {place}" if place else ""
    raise Difference(f"cannot compare a {type(value).__name__}{where}")


def compare(ours: Any, reference: Any, place: str, atol: float, rtol: float) -> tuple[float, float, str, Any, Any, int]:
    """How far the worst element is beyond its bound (<= 0: within); of that element, or where all are within of the one
    that differs most, the difference, place and both values; and how many elements differ at all."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    if ours.size == 0:
        return 0.0, 0.0, place, None, None, 0
    gap, excess = differences(ours, reference, atol, rtol)
    beyond = float(excess.max())
    index = int(np.argmax(excess if beyond > 0 else gap))
    spot = np.unravel_index(index, ours.shape)
    where = place + (f"[{', '.join(str(int(i)) for i in spot)}]" if ours.ndim else "")
    differ = int(np.count_nonzero(gap))
    return beyond, float(gap.flat[index]), where, ours.flat[index], reference.flat[index], differ


def differences(ours: np.ndarray, reference: np.ndarray, atol: float, rtol: float) -> tuple[np.ndarray, np.ndarray]:
    """The difference of each pair of elements, and how far it is beyond its bound (<= 0: within)."""
    inexact = ours.dtype.kind in "fc" or reference.dtype.kind in "fc"
    if not inexact:
        gap = np.array(ours != reference, dtype=np.float64)
        if ours.dtype.kind != "b" and reference.dtype.kind != "b":
            # Python's integers: a difference of two int64 may not fit into one.
            for differing in np.flatnonzero(gap):
                gap.flat[differing] = float(abs(int(ours.flat[differing]) - int(reference.flat[differing])))
        excess = gap
    else:
        with np.errstate(invalid="ignore"):
            gap = np.abs(ours - reference)
            gap = np.where(ours == reference, 0.0, gap)  # equal infinities: inf - inf is NaN
            bound = np.where(np.isfinite(reference), atol + rtol * np.abs(reference), 0.0)
            gap = np.where(np.isnan(gap), np.inf, gap)
            # Never NaN: `max` over several leaves would pass over it.
            excess = np.where(np.isinf(gap), np.inf, gap - bound)
    return gap, excess


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
