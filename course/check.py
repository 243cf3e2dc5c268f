"""Claims that run: each states one claim, prints one line, and raises `AssertionError` if it fails.

Where the environment variable `COURSE_CLAIMS` names a file, each claim is also appended to it as one JSON record. NaN
never passes, also not against NaN.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from course.answers import judge
from course.compare import Difference, compare, leaves
from course.unaided import unaided

__all__ = ["answer", "equal", "fails", "holds", "predicted", "skipped", "unaided", "when"]


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
        pairs = list(leaves(ours, reference, "", check_dtype))
        if not any(np.size(pair[0]) for pair in pairs):
            raise Difference("nothing was compared: both sides are empty")
        results = [compare(*pair, atol, rtol) for pair in pairs]
        worst = max(results, key=lambda result: (result[0] > 0, result[0] if result[0] > 0 else result[1]))
    except Difference as difference:
        _report("equal", name, False, detail=str(difference), bound=bound)
        return
    excess, gap, place, ours_there, reference_there, _ = worst
    held = excess <= 0
    where = f" at {place}" if place else ""
    if any(result[-1] for result in results):
        detail = f"largest difference {_number(gap)}{where}"
    else:
        number = sum(np.size(pair[0]) for pair in pairs)
        detail = f"equal, {number:,} value{'s' * (number != 1)}"
    if not held:
        detail += f" (ours {_number(ours_there)}, reference {_number(reference_there)})"
    _report(
        "equal",
        name,
        held,
        detail=detail,
        predicted=reference_there,
        measured=ours_there,
        difference=gap,
        bound=bound,
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
    """Claim that a measurement meets its prediction.

    `|measured - predicted|` is at most `within * |predicted|`, or at most `atol` where that is given instead.

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
    values = {"predicted": guess, "measured": seen, "difference": difference, "unit": unit}
    _report("predicted", name, held, detail=detail, bound=bound, **values)


def holds(name: str, condition: Any, detail: str = "") -> None:
    """Claim that a condition is true.

    Args:
        name: what is claimed, in a few words.
        condition: a bool, or a one-element bool tensor or array. Anything else (a list, a tuple with a
            forgotten bracket, None) is refused, since its truth would say nothing.
        detail: the numbers behind it, for the printed line.

    Raises:
        AssertionError: when it is false.
        TypeError: when `condition` is not a truth value.
    """
    value = condition.item() if hasattr(condition, "item") and np.prod(condition.shape) == 1 else condition
    if not isinstance(value, bool):
        raise TypeError(f"{name}: `condition` must be one True or False, not {type(condition).__name__}")
    _report("holds", name, value, detail=detail)


def skipped(name: str, why: str) -> None:
    """Say of a claim that this machine cannot show it. It is counted apart, and never as one that held.

    Args:
        name: what would be claimed.
        why: what is missing here, and where it can be had.
    """
    print(f"skipped  {name}: {why}")
    _record({"kind": "skipped", "name": name, "held": False, "detail": why})


class _Skipping:
    """The verbs of claims, each of which says that it is skipped."""

    def __init__(self, why: str) -> None:
        self._why = why

    def equal(self, name: str, *_: Any, **__: Any) -> None:
        skipped(name, self._why)

    predicted = holds = equal


def when(possible: bool, why: str) -> Any:
    """The verbs `equal`, `predicted` and `holds`; where a part of a lesson is not possible here, each skips its claim.

    Args:
        possible: whether this machine can show the claims.
        why: what is missing here, and where it can be had.
    """
    return sys.modules[__name__] if possible else _Skipping(why)


_tries: dict[str, int] = {}  # of exercises that are not solved yet


def answer(name: str, given: Any, expected: Any, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Claim that the answer to an exercise is right; where it is not, say why without giving the right one away.

    The form is looked at first: a missing `return`, the type, the shape. A number that is wrong is said to be too large
    or too small, each time it is tried more closely.

    Args:
        name: of the exercise.
        given: the reader's answer.
        expected: a number, text, tensor, array, or a tree of them.
        atol, rtol: as for `equal`.

    Raises:
        AssertionError: when it is wrong.
    """
    _tries[name] = _tries.get(name, 0) + 1
    wrong = judge(given, expected, atol=atol, rtol=rtol, tries=_tries[name])
    if wrong is None:
        del _tries[name]
    _report("answer", name, wrong is None, detail=wrong or "right")


# How many `fails` blocks are open. A claim that goes red inside one is what that block claims, not a claim of its own.
_expecting = 0


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
    global _expecting
    caught = Failure()
    bound = error.__name__ + (f" matching {match!r}" if match else "")
    _expecting += 1
    try:
        try:
            yield caught
        finally:
            _expecting -= 1
    except Exception as raised:
        caught.error = raised
        message = str(raised).strip().split("\n")[0]
        if len(message) > 160:
            message = message[:157] + "..."
        held = isinstance(raised, error) and (match is None or re.search(match, str(raised)) is not None)
        detail = f"{'caught, as intended:' if held else 'raised'} {type(raised).__name__}: {message}"
        try:
            _report("fails", name, held, detail=detail, bound=bound)
        except AssertionError as red:
            raise red from raised
    else:
        _report("fails", name, False, detail="nothing was raised", bound=bound)


def _report(kind: str, name: str, held: bool, *, detail: str = "", bound: str = "", **values: Any) -> None:
    line = f"{'holds' if held else 'FAILS'}  {name}"
    if detail:
        line += f": {detail}"
    if bound:
        line += f" ({'expected' if kind == 'fails' else 'bound'} {bound})"
    if held or not _expecting:
        _record({"kind": kind, "name": name, "held": held, "detail": detail, "bound": bound, **values})
    if not held:
        raise AssertionError(line)
    print(line)


def _record(record: dict[str, Any]) -> None:
    path = os.environ.get("COURSE_CLAIMS")
    if not path:
        return
    from course.hardware import hardware

    full = {
        "notebook": os.environ.get("COURSE_NOTEBOOK", ""),
        **{key: _json_value(value) for key, value in record.items()},
        "hardware": hardware(),
    }
    # One short write in append mode, so that notebooks running side by side do not mix their lines.
    # Half of a surrogate pair, as broken texts hold it, has no UTF-8: a question mark takes its place.
    with open(path, "a", encoding="utf-8", errors="replace") as file:
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
