"""What is wrong with an answer to an exercise, said without the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course.compare import Difference, differences, leaves

# How closely a wrong number is told on the first, the second and further tries: by more than which factor it is off.
FACTORS = ((10, 2), (10, 5, 2, 1.5, 1.2), (10, 5, 2, 1.5, 1.2, 1.1, 1.05, 1.02, 1.01))


def judge(answer: Any, expected: Any, *, atol: float = 0.0, rtol: float = 0.0, tries: int = 1) -> str | None:
    """What is wrong with an answer: its form first, then its values, never the values expected.

    Args:
        answer: the reader's.
        expected: a number, text, tensor, array, or a tree of them (dict, list, tuple, dataclass).
        atol, rtol: as for `check.equal`.
        tries: how often it was asked, this time included; a number that is wrong is told more closely each time.

    Returns:
        A sentence, or None where the answer is right.
    """
    odd = _form(answer, expected, "it")
    if odd:
        return odd
    wrong = total = 0
    first = ""
    try:
        for left, right, place in leaves(answer, expected, "", True):
            left, right = np.asarray(left), np.asarray(right)
            beyond = differences(left, right, atol, rtol)[1] > 0
            if beyond.any() and not wrong:
                spot = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
                first = place + (f"[{', '.join(str(int(i)) for i in spot)}]" if beyond.ndim else "")
            wrong, total = wrong + int(beyond.sum()), total + beyond.size
    except Difference:  # two texts; everything else has the same form
        return "a text in it is not the right one" if _size(expected) > 1 else "it is not the right one"
    if not wrong:
        return None
    if total == 1 and not isinstance(expected, (bool, np.bool_)):
        return _direction(float(np.asarray(left).flat[0]), float(np.asarray(right).flat[0]), tries)
    if total == 1:
        return "it is the other one"
    return f"{wrong:,} of {total:,} values are wrong, the first at {first}"


def _form(answer: Any, expected: Any, place: str) -> str:
    """Why two values cannot be compared, or nothing."""
    if expected is not None and answer is None:
        return f"{place} is None: is the `return` missing?"
    if answer is ...:
        return f"{place} is still `...`"
    if isinstance(expected, Mapping):
        if not isinstance(answer, Mapping):
            return f"{place} is a {_kind(answer)}, and a dict is wanted"
        for label, keys in (("lacks", set(expected) - set(answer)), ("has too much:", set(answer) - set(expected))):
            if keys:
                return f"{place} {label} {', '.join(sorted(map(repr, keys))[:5])}"
        return next((odd for key in expected if (odd := _form(answer[key], expected[key], f"{place}[{key!r}]"))), "")
    if isinstance(expected, Sequence) and not isinstance(expected, (str, bytes)):
        if not isinstance(answer, Sequence) or isinstance(answer, (str, bytes)):
            return f"{place} is a {_kind(answer)}, and a {_kind(expected)} is wanted"
        if len(answer) != len(expected):
            return f"{place} has {len(answer)} entries, and {len(expected)} are wanted"
        pairs = enumerate(zip(answer, expected, strict=True))
        return next((odd for index, pair in pairs if (odd := _form(*pair, f"{place}[{index}]"))), "")
    shape = getattr(expected, "shape", ())
    if shape != ():
        if not hasattr(answer, "shape"):
            return f"{place} is a {_kind(answer)}, and a {_kind(expected)} of shape {tuple(shape)} is wanted"
        if tuple(answer.shape) != tuple(shape):
            return f"{place} has the shape {tuple(answer.shape)}, and {tuple(shape)} is wanted"
        names = [str(value.dtype).removeprefix("torch.") for value in (answer, expected)]
        return "" if names[0] == names[1] else f"{place} is of {names[0]}, and {names[1]} is wanted"
    if isinstance(expected, (str, bytes)) or expected is None or not isinstance(_number(expected), (int, float)):
        same = isinstance(answer, type(expected))
        return "" if same else f"{place} is a {_kind(answer)}, and a {_kind(expected)} is wanted"
    if not isinstance(_number(answer), (int, float)):
        return f"{place} is a {_kind(answer)}, and one number is wanted"
    return ""


def _direction(given: float, wanted: float, tries: int) -> str:
    if given != given:
        return "it is not a number (NaN)"
    side = "large" if given > wanted else "small"
    if wanted == 0 or given == 0 or (given > 0) != (wanted > 0):
        return f"it is too {side}" + ("" if wanted == 0 or given == 0 else ", and its sign is wrong")
    ratio = max(given / wanted, wanted / given)
    factors = FACTORS[min(tries, len(FACTORS)) - 1]
    near = next((factor for factor in factors if ratio > factor), None)
    size = "too large" if abs(given) > abs(wanted) else "too small"
    return f"it is {size} by more than {near:g}x" if near else f"it is {size} by less than {factors[-1]:g}x"


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value


def _size(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return sum(map(_size, value))
    return 1


def _kind(value: Any) -> str:
    return type(value).__name__
