"""Each check holds where it should, and goes red where it must."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from course import check

NAN = float("nan")
INF = float("inf")


@dataclass(frozen=True)
class Pair:
    left: Any
    right: Any


@dataclass(frozen=True)
class Other:
    left: Any
    right: Any


EQUAL = {
    "numbers": (1.5, 1.5, {}),
    "int and float": (2, 2.0, {}),
    "tensors": (torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3), {}),
    "tensor and array": (torch.ones(2), np.ones(2, dtype=np.float32), {}),
    "bfloat16": (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16), {}),
    "within atol": (1.0, 1.0 + 1e-7, {"atol": 1e-6}),
    "within rtol": (1000.0, 1000.1, {"rtol": 1e-3}),
    "dtype not asked": (torch.ones(2), torch.ones(2, dtype=torch.float64), {"check_dtype": False}),
    "equal infinities": ([INF, -INF], [INF, -INF], {}),
    "text": ("tokens", "tokens", {}),
    "tree": ({"a": [1, (2.0, None)], "b": "x"}, {"b": "x", "a": [1, (2.0, None)]}, {}),
    "dataclass": (Pair(1, torch.ones(1)), Pair(1, torch.ones(1)), {}),
    "requires grad": (torch.ones(2, requires_grad=True), torch.ones(2), {}),
    "large integers": (2**62 + 1, 2**62 + 1, {}),
    "complex": (1 + 2j, 1 + 2j, {}),
    "one empty of two": ([torch.empty(0), 1.0], [torch.empty(0), 1.0], {}),
}
UNEQUAL = {
    "value": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]), {}, r"largest difference 0\.1 at \[1\]"),
    "beyond atol": (1.0, 1.1, {"atol": 0.05}, "largest difference"),
    "beyond rtol": (100.0, 102.0, {"rtol": 0.01}, "largest difference 2"),
    "NaN against a number": (NAN, 1.0, {}, "largest difference inf"),
    "a number against NaN": (1.0, NAN, {"rtol": 0.1}, "largest difference inf"),
    "NaN against NaN": (NAN, NAN, {}, "largest difference inf"),
    "NaN in a later leaf": ([1.0, 2.0], [1.0, NAN], {"rtol": 0.1}, r"at \[1\]"),
    "NaN in a later leaf, any bound": ([1.0, NAN], [1.0, 2.0], {"atol": INF}, r"at \[1\]"),
    "NaN within any bound": (NAN, 1.0, {"atol": INF}, "largest difference inf"),
    "an infinity": (INF, 1.0, {"atol": 1.0}, "largest difference inf"),
    "opposite infinities": (INF, -INF, {"rtol": 1.0}, "largest difference inf"),
    "shape": (torch.ones(2, 3), torch.ones(3, 2), {}, r"shapes differ: ours \(2, 3\), reference \(3, 2\)"),
    "shape that broadcasts": (torch.ones(1), torch.ones(3), {"atol": 1.0}, "shapes differ"),
    "dtype": (torch.ones(2), torch.ones(2, dtype=torch.float64), {}, "dtypes differ: ours float32"),
    "bool for int": (torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.int64), {}, "dtypes differ"),
    "integer by one": (2**62, 2**62 + 1, {"atol": 10.0}, "largest difference 1"),
    "one integer by four": (56, 60, {}, r"largest difference 4 \(ours 56, reference 60\)"),
    "text": ("ab", "ac", {}, "values differ: ours 'ab'"),
    "text and number": ("1", 1, {}, "values differ"),
    "None and zero": (None, 0, {}, "values differ"),
    "length": ([1, 2], [1, 2, 3], {}, "lengths differ: ours 2, reference 3"),
    "keys": ({"a": 1}, {"b": 1}, {}, "keys on one side only: a, b"),
    "deep": ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, {}, r"at \['a'\]\[1\]\['b'\]"),
    "dataclass": (Pair(1, 2), Pair(1, 3), {}, r"at \['right'\]"),
    "another dataclass": (Pair(1, 2), Other(1, 2), {}, "cannot compare a Pair"),
    "empty lists": ([], [], {}, "nothing was compared"),
    "empty tensors": (torch.empty(0), torch.empty(0), {}, "nothing was compared"),
    "objects": (object(), object(), {}, "cannot compare a object"),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_holds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    ours, reference, options = EQUAL[name]
    check.equal("a claim", ours, reference, **options)
    said = capsys.readouterr().out
    exact = not any(options.get(key) for key in ("atol", "rtol"))
    form = r"equal, \d+ values?" if exact else r"largest difference [\d.]+.*"
    assert re.fullmatch(rf"holds  a claim: {form} \(bound .*\)\n", said), said


def test_equal_counts_what_is_equal(capsys: pytest.CaptureFixture[str]) -> None:
    check.equal("a", {"x": torch.zeros(3, 4096), "y": "text"}, {"x": torch.zeros(3, 4096), "y": "text"}, atol=1.0)
    check.equal("b", [1.0, 2.0], [1.0, 2.5], rtol=0.5)
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "holds  a: equal, 12,289 values (bound atol 1)"
    assert lines[1].startswith("holds  b: largest difference 0.5 at [1]")


@pytest.mark.parametrize("name", UNEQUAL)
def test_equal_goes_red(name: str) -> None:
    ours, reference, options, message = UNEQUAL[name]
    with pytest.raises(AssertionError, match=message):
        check.equal("a claim", ours, reference, **options)


def test_equal_says_both_values_and_the_bound() -> None:
    with pytest.raises(AssertionError) as red:
        check.equal("loss", [0.5, 3.0], [0.5, 2.0], atol=1e-3)
    assert str(red.value) == ("FAILS  loss: largest difference 1 at [1] (ours 3, reference 2) (bound atol 0.001)")


@pytest.mark.parametrize(
    ("predicted", "measured", "bounds"),
    [(100, 104, {}), (100, 150, {"within": 0.5}), (-10, -10.4, {}), (0, 0.1, {"atol": 0.2}), (8, torch.tensor(8), {})],
)
def test_predicted_holds(predicted: Any, measured: Any, bounds: dict[str, float]) -> None:
    check.predicted("bytes", predicted, measured, **bounds)


@pytest.mark.parametrize(
    ("predicted", "measured", "bounds"),
    [
        (100, 106, {}),
        (100, 94, {}),
        (100, NAN, {}),
        (NAN, 100, {}),
        (NAN, NAN, {"atol": INF}),
        (100, INF, {}),
        (0, 0.3, {"atol": 0.2}),
    ],
)
def test_predicted_goes_red(predicted: Any, measured: Any, bounds: dict[str, float]) -> None:
    with pytest.raises(AssertionError, match=r"^FAILS  bytes: predicted"):
        check.predicted("bytes", predicted, measured, **bounds)


def test_predicted_refuses_a_bound_that_says_nothing() -> None:
    with pytest.raises(ValueError, match="give `atol`"):
        check.predicted("zero", 0, 0)
    with pytest.raises(ValueError, match="not both"):
        check.predicted("two", 1, 1, within=0.1, atol=0.1)


def test_predicted_prints_numbers_with_their_unit(capsys: pytest.CaptureFixture[str]) -> None:
    check.predicted("weights", 1000, 1010, within=0.02, unit="bytes")
    assert capsys.readouterr().out == (
        "holds  weights: predicted 1,000 bytes, measured 1,010 bytes, off +1.00% (bound 2%)\n"
    )


@pytest.mark.parametrize("value", [True, torch.tensor(True), np.bool_(True), torch.tensor([True])])
def test_holds(value: Any) -> None:
    check.holds("true", value)


@pytest.mark.parametrize("value", [False, torch.tensor(False), np.bool_(False)])
def test_holds_goes_red(value: Any) -> None:
    with pytest.raises(AssertionError, match=r"^FAILS  false: 3 of 4$"):
        check.holds("false", value, "3 of 4")


@pytest.mark.parametrize(
    "value", [(1 > 2, "a bracket forgotten"), [False], None, 1, "yes", torch.tensor([True, False]), torch.tensor(1.0)]
)
def test_holds_refuses_what_is_no_truth_value(value: Any) -> None:
    with pytest.raises(TypeError, match="must be one True or False"):
        check.holds("no truth value", value)


def test_fails_holds_and_keeps_the_error() -> None:
    with check.fails("division", ZeroDivisionError, match="by zero") as caught:
        _ = 1 / 0
    assert isinstance(caught.error, ZeroDivisionError)


def test_fails_goes_red_when_nothing_is_raised() -> None:
    with pytest.raises(AssertionError, match="nothing was raised"), check.fails("quiet", ValueError):
        pass


def test_fails_goes_red_for_another_error() -> None:
    with pytest.raises(AssertionError, match="raised KeyError") as red, check.fails("other", ValueError):
        raise KeyError("x")
    assert isinstance(red.value.__cause__, KeyError)


def test_fails_goes_red_for_another_message() -> None:
    with pytest.raises(AssertionError, match="matching 'shape'"), check.fails("text", ValueError, match="shape"):
        raise ValueError("size")


def test_fails_lets_an_interruption_through() -> None:
    with pytest.raises(KeyboardInterrupt), check.fails("ctrl-c", ValueError):
        raise KeyboardInterrupt


def test_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "claims.jsonl"
    monkeypatch.setenv("COURSE_CLAIMS", str(file))
    monkeypatch.setenv("COURSE_NOTEBOOK", "Module-1/notebooks/1_A.ipynb")
    check.predicted("bytes", 100, 101, unit="B")
    check.equal("trees", {"a": torch.ones(2)}, {"a": torch.ones(2)}, atol=1e-6)
    with pytest.raises(AssertionError):
        check.predicted("nan", 1.0, NAN)
    with check.fails("raises", ValueError):
        raise ValueError("no")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["held"] for record in records] == [True, True, False, True]
    assert [record["kind"] for record in records] == ["predicted", "equal", "predicted", "fails"]
    first = records[0]
    assert (first["predicted"], first["measured"], first["difference"]) == (100, 101, 1)
    assert first["bound"] == "5%" and first["unit"] == "B"
    assert all(record["notebook"] == "Module-1/notebooks/1_A.ipynb" and record["hardware"] for record in records)
    assert records[2]["measured"] == "nan"  # JSON knows no NaN


def test_a_claim_that_is_meant_to_fail_is_no_failed_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "claims.jsonl"
    monkeypatch.setenv("COURSE_CLAIMS", str(file))
    with check.fails("without the mask it differs", AssertionError, match="inner"):
        check.holds("held on the way", True)
        check.equal("inner", 1, 2)
    with pytest.raises(AssertionError), check.fails("another error", ValueError):
        check.equal("inner", 1, 2)
    with pytest.raises(AssertionError):
        check.equal("outside again", 1, 2)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(record["name"], record["held"]) for record in records] == [
        ("held on the way", True),
        ("without the mask it differs", True),
        ("another error", False),
        ("outside again", False),
    ]


def test_records_of_processes_side_by_side_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "claims.jsonl"
    code = "from course import check\nfor i in range(200): check.holds('x' * 500, True)"
    env = {**os.environ, "COURSE_CLAIMS": str(file)}
    children = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    lines = file.read_text().splitlines()
    assert len(lines) == 600 and all(json.loads(line)["held"] for line in lines)


def test_claims_of_what_is_not_possible_are_skipped_and_counted_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_CLAIMS", str(tmp_path / "claims.jsonl"))
    check.when(True, "unused").equal("one", 1, 1)
    absent = check.when(False, "no such model; install it")
    absent.equal("two", 1, 2)
    absent.predicted("three", 1.0, 2.0, within=0.1)
    absent.holds("four", False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["holds", "skipped", "skipped", "skipped"]
    assert lines[1] == "skipped  two: no such model; install it"
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "claims.jsonl").read_text().splitlines()]
    assert kinds == ["equal", "skipped", "skipped", "skipped"]
