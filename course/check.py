"""Claims that run: each function states one claim, prints one line, and raises `AssertionError` when it does not hold.

Where the environment variable `COURSE_CLAIMS` names a file, each claim is also appended to it as one JSON record.
NaN never passes, also not against NaN.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["equal", "fails", "holds", "predicted"]


class _Difference(Exception):
    """Two values differ in kind (type, shape, dtype, keys), so that no number says by how much."""


def equal(
    name: str, ours: Any, reference: Any, *, atol: float = 0.0, rtol: float = 0.0, check_dtype: bool = True
) -> None:
    """Claim that `ours` equals `reference`, element by element.

    Takes tensors, arrays, numbers, strings, and trees of them (dict, list, tuple, dataclass). The default is
    bit for bit; a tolerance wants its reason beside the call. Two elements are equal when
    `|ours - reference| <= atol + rtol * |reference|`, as in `torch.testing.assert_close`.

    Args:
        name: what is claimed, in a few words.
        ours, reference: the two values, of the same structure and shapes.
        atol, rtol: absolute and relative tolerance; they apply to floating-point and complex values only.
        check_dtype: whether tensors and arrays must also share their dtype. A bare Python number has none.

    Raises:
        AssertionError: with the place and size of the largest difference.
    """
    bound = _bound_text(atol, rtol)
    try:
        leaves = list(_leaves(ours, reference, "", check_dtype))
        if not leaves:
            raise _Difference("nothing was compared: both sides are empty")
        worst = max((_compare(*leaf, atol, rtol) for leaf in leaves), key=lambda result: result[0])
    except _Difference as difference:
        _report("equal", name, False, detail=str(difference), bound=bound)
        return
    excess, gap, place, ours_there, reference_there = worst
    held = excess <= 0
    where = f" at {place}" if place else ""
    detail = f"largest difference {_number(gap)}{where}"
    if not held:
        detail += f" (ours {_number(ours_there)}, reference {_number(reference_there)})"
    _report(
        "equal", name, held, detail=detail, predicted=reference_there, measured=ours_there, difference=gap, bound=bound
    )


def predicted(
    name: str,
    predicted: float,
    measured: float,
    *,
    within: float | None = None,
    atol: float | None = None,
    unit: str = "",
) -> None:
    """Claim that a measurement meets its prediction: `|measured - predicted|` is at most `within * |predicted|`,
    or at most `atol` where that is given instead.

    Args:
        name: what is claimed, in a few words.
        predicted, measured: two real numbers (a one-element tensor will do).
        within: relative bound; 0.05 when neither bound is given.
        atol: absolute bound, in `unit`; for predictions of zero.
        unit: printed behind both numbers.

    Raises:
        AssertionError: when the measurement is outside the bound, or one of the two is NaN.
        ValueError: for both bounds at once, or a relative bound around zero.
    """
    if within is not None and atol is not None:
        raise ValueError(f"{name}: give `within` (relative) or `atol` (absolute), not both")
    if within is None and atol is None:
        within = 0.05
    guess, seen = _as_float(predicted), _as_float(measured)
    if atol is None and guess == 0:
        raise ValueError(f"{name}: nothing is within {within:.0%} of zero; give `atol` instead of `within`")
    difference = seen - guess
    if atol is not None:
        held = abs(difference) <= atol
        off, bound = _number(difference, signed=True), _number(atol)
    else:
        assert within is not None
        held = abs(difference) <= within * abs(guess)
        off, bound = f"{difference / abs(guess):+.2%}", f"{within * 100:.4g}%"
    suffix = f" {unit}" if unit else ""
    detail = f"predicted {_number(guess)}{suffix}, measured {_number(seen)}{suffix}, off {off}"
    _report(
        "predicted", name, held, detail=detail, predicted=guess, measured=seen, difference=difference, bound=bound,
        unit=unit,
    )  # fmt: skip


def holds(name: str, condition: Any, detail: str = "") -> None:
    """Claim that a condition is true.

    Args:
        name: what is claimed, in a few words.
        condition: a bool, or a one-element bool tensor or array. Anything else (a list, a tuple with a forgotten
            bracket, None) is refused, since its truth would say nothing.
        detail: the numbers behind it, for the printed line.

    Raises:
        AssertionError: when it is false.
        TypeError: when `condition` is not a truth value.
    """
    value = condition.item() if hasattr(condition, "item") and np.prod(condition.shape) == 1 else condition
    if not isinstance(value, bool):
        raise TypeError(f"{name}: `condition` must be one True or False, not {type(condition).__name__}")
    _report("holds", name, value, detail=detail)


class Failure:
    """What `fails` caught: `error` is the exception, None until the block has ended."""

    error: BaseException | None = None


@contextmanager
def fails(name: str, error: type[Exception], match: str | None = None) -> Iterator[Failure]:
    """Claim that the block raises `error`, with a message in which the regular expression `match` is found.

    Yields:
        A `Failure` whose `error` is the caught exception once the block has ended.

    Raises:
        AssertionError: when nothing is raised, or something else, or with another message.
    """
    caught = Failure()
    bound = error.__name__ + (f" matching {match!r}" if match else "")
    try:
        yield caught
    except Exception as raised:
        caught.error = raised
        message = str(raised).strip().split("\n")[0]
        if len(message) > 160:
            message = message[:157] + "..."
        held = isinstance(raised, error) and (match is None or re.search(match, str(raised)) is not None)
        detail = f"raised {type(raised).__name__}: {message}"
        try:
            _report("fails", name, held, detail=detail, bound=bound)
        except AssertionError as red:
            raise red from raised
    else:
        _report("fails", name, False, detail="nothing was raised", bound=bound)


# ---- comparing -------------------------------------------------------------------------------------------------------


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _leaves(ours: Any, reference: Any, place: str, check_dtype: bool) -> Iterator[tuple[Any, Any, str]]:
    """Pairs of comparable leaves of two trees, each with its place; raises `_Difference` where structures part."""
    if dataclasses.is_dataclass(ours) and not isinstance(ours, type) and type(ours) is type(reference):
        fields = [field.name for field in dataclasses.fields(ours)]
        ours = {name: getattr(ours, name) for name in fields}
        reference = {name: getattr(reference, name) for name in fields}
    at = f" at {place}" if place else ""
    if isinstance(ours, Mapping) and isinstance(reference, Mapping):
        if set(ours) != set(reference):
            only = sorted(map(str, set(ours) ^ set(reference)))[:5]
            raise _Difference(f"keys on one side only{at}: {', '.join(only)}")
        for key in reference:
            yield from _leaves(ours[key], reference[key], f"{place}[{key!r}]", check_dtype)
    elif _is_sequence(ours) and _is_sequence(reference):
        if len(ours) != len(reference):
            raise _Difference(f"lengths differ{at}: ours {len(ours)}, reference {len(reference)}")
        for index, (left, right) in enumerate(zip(ours, reference, strict=True)):
            yield from _leaves(left, right, f"{place}[{index}]", check_dtype)
    elif isinstance(ours, (str, bytes)) or isinstance(reference, (str, bytes)) or ours is None or reference is None:
        if type(ours) is not type(reference) or ours != reference:
            raise _Difference(f"values differ{at}: ours {_shorten(ours)}, reference {_shorten(reference)}")
        yield 0, 0, place
    else:
        left, right = _array(ours, place), _array(reference, place)
        if left.shape != right.shape:
            raise _Difference(f"shapes differ{at}: ours {tuple(left.shape)}, reference {tuple(right.shape)}")
        if check_dtype and hasattr(ours, "dtype") and hasattr(reference, "dtype"):
            names = [str(value.dtype).removeprefix("torch.") for value in (ours, reference)]
            if names[0] != names[1]:
                raise _Difference(f"dtypes differ{at}: ours {names[0]}, reference {names[1]}")
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
    at = f" at {place}" if place else ""
    raise _Difference(f"cannot compare a {type(value).__name__}{at}")


def _compare(ours: Any, reference: Any, place: str, atol: float, rtol: float) -> tuple[float, float, str, Any, Any]:
    """How far the worst element is beyond its bound (<= 0: within), its difference, place and both values."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    if ours.size == 0:
        return 0.0, 0.0, place, None, None
    inexact = ours.dtype.kind in "fc" or reference.dtype.kind in "fc"
    if not inexact:
        gap = (ours != reference).astype(np.float64)
        if ours.dtype.kind != "b" and reference.dtype.kind != "b":
            # Python's integers: a difference of two int64 may not fit into one.
            differing = np.flatnonzero(gap)
            for index in differing:
                gap.flat[index] = float(abs(int(ours.flat[index]) - int(reference.flat[index])))
        excess = gap
    else:
        with np.errstate(invalid="ignore"):
            gap = np.abs(ours - reference)
            gap = np.where(ours == reference, 0.0, gap)  # equal infinities: inf - inf is NaN
            bound = np.where(np.isinf(reference), 0.0, atol + rtol * np.abs(reference))
            gap = np.where(np.isnan(gap), np.inf, gap)
            excess = gap - bound
    index = int(np.argmax(excess))
    spot = np.unravel_index(index, ours.shape)
    where = place + (f"[{', '.join(str(int(i)) for i in spot)}]" if ours.ndim else "")
    return float(excess.flat[index]), float(gap.flat[index]), where, ours.flat[index], reference.flat[index]


# ---- reporting -------------------------------------------------------------------------------------------------------


def _report(kind: str, name: str, held: bool, *, detail: str = "", bound: str = "", **values: Any) -> None:
    line = f"{'holds' if held else 'FAILS'}  {name}"
    if detail:
        line += f": {detail}"
    if bound:
        line += f" ({'expected' if kind == 'fails' else 'bound'} {bound})"
    _record({"kind": kind, "name": name, "held": held, "detail": detail, "bound": bound, **values})
    if not held:
        raise AssertionError(line)
    print(line)


def _record(record: dict[str, Any]) -> None:
    path = os.environ.get("COURSE_CLAIMS")
    if not path:
        return
    from course.machine import hardware

    full = {
        "notebook": os.environ.get("COURSE_NOTEBOOK", ""),
        **{key: _json_value(value) for key, value in record.items()},
        "hardware": hardware(),
    }
    # One short write in append mode, so that notebooks running side by side do not mix their lines.
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(full, ensure_ascii=False) + "\n")


def _json_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def _as_float(value: Any) -> float:
    return float(value.item()) if hasattr(value, "item") else float(value)


def _bound_text(atol: float, rtol: float) -> str:
    parts = [f"{label} {value:g}" for label, value in (("atol", atol), ("rtol", rtol)) if value]
    return ", ".join(parts) or "exact"


def _number(value: Any, signed: bool = False) -> str:
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (complex, np.complexfloating)):
        return f"{value:.4g}"
    value = float(value)
    plus = "+" if signed else ""
    if value.is_integer() and abs(value) < 1e15:
        return f"{int(value):{plus},}"
    return f"{value:{plus}.4g}" if abs(value) < 1e4 else f"{value:{plus},.1f}"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
