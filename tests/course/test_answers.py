"""What an exercise says of a wrong answer: its form first, a direction, and never the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from course import check
from course.answers import judge

SQUARE = torch.tensor([[1.25, 2.5], [3.75, 5.0]])


@dataclass
class Pair:
    left: int
    right: str


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (None, 3.25, "it is None: is the `return` missing?"),
        (None, SQUARE, "it is None: is the `return` missing?"),
        (..., 3.25, "it is still `...`"),
        ([1, 2], 3.25, "it is a list, and one number is wanted"),
        ("7", 7, "it is a str, and one number is wanted"),
        (torch.ones(1), 3.25, "it is a Tensor, and one number is wanted"),
        (7, "seven", "it is a int, and a str is wanted"),
        (SQUARE.tolist(), SQUARE, "it is a list, and a Tensor of shape (2, 2) is wanted"),
        (SQUARE.flatten(), SQUARE, "it has the shape (4,), and (2, 2) is wanted"),
        (SQUARE.double(), SQUARE, "it is of float64, and float32 is wanted"),
        (SQUARE + torch.eye(2), SQUARE, "2 of 4 values are wrong, the first at [0, 0]"),
        (SQUARE * float("nan"), SQUARE, "4 of 4 values are wrong, the first at [0, 0]"),
        ((1, 2, 3), [1, 2], "it has 3 entries, and 2 are wanted"),
        ([1, 9], [1, 2], "1 of 2 values are wrong, the first at [1]"),
        ({"a": 1}, {"a": 1, "b": 2}, "it lacks 'b'"),
        ({"a": 1, "c": 2}, {"a": 1}, "it has too much: 'c'"),
        ({"a": [1, None]}, {"a": [1, 2]}, "it['a'][1] is None: is the `return` missing?"),
        ("black", "white", "it is not the right one"),
        (["a", "b"], ["a", "c"], "a text in it is not the right one"),
        (True, False, "it is the other one"),
        (float("nan"), 3.0, "it is not a number (NaN)"),
        (-3.0, 3.0, "it is too small, and its sign is wrong"),
        (0.5, 0.0, "it is too large"),
        (Pair(1, "x"), Pair(2, "x"), "1 of 2 values are wrong, the first at ['left']"),
    ],
)
def test_what_is_said(answer: Any, expected: Any, said: str) -> None:
    assert judge(answer, expected) == said


@pytest.mark.parametrize(("answer", "expected"), [(3, 3.0), (SQUARE, SQUARE), (np.float32(2), 2), ([1, "a"], (1, "a"))])
def test_what_is_right(answer: Any, expected: Any) -> None:
    assert judge(answer, expected) is None
    assert judge(None, None) is None and judge(1.04, 1.0, rtol=0.05) is None and judge(1.06, 1.0, rtol=0.05)


def test_each_try_is_told_more_closely_and_never_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for guess in (1300, 1300, 1300, 1237):
        with pytest.raises(AssertionError) as red:
            check.answer("tokens", guess, 1234)
        said.append(str(red.value).removeprefix("FAILS  tokens: it is too large by "))
    assert said == ["less than 2x", "less than 1.2x", "more than 1.05x", "less than 1.01x"]
    assert capsys.readouterr().out == "" and not any("1234" in line or "1,234" in line for line in said)
    check.answer("tokens", 1234, 1234)
    assert capsys.readouterr().out == "holds  tokens: right\n"
    with pytest.raises(AssertionError, match=r"too small by more than 10x"):  # solved: the tries begin anew
        check.answer("tokens", 5, 1234)
