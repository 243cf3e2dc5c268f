"""A solution that calls the library's piece is told apart from one that builds it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import softmax

from course import check


def test_calling_it_is_an_error_that_says_so():
    x = torch.ones(3)
    with (
        pytest.raises(AssertionError, match=r"calls torch\.nn\.functional\.softmax: write"),
        check.unaided("torch.nn.functional.softmax"),
    ):
        F.softmax(x, -1)
    with (
        pytest.raises(AssertionError, match=r"calls torch\.nn\.functional\.softmax"),
        check.unaided("torch.nn.functional.softmax"),
    ):
        softmax(x, -1)  # imported by its name before
    with (
        pytest.raises(AssertionError, match=r"calls torch\.Tensor\.softmax"),
        check.unaided("torch.softmax", "torch.Tensor.softmax"),
    ):
        x.softmax(-1)
    with pytest.raises(AssertionError, match=r"calls torch\.optim\.AdamW"), check.unaided("torch.optim.AdamW"):
        torch.optim.AdamW([x])


def test_what_is_built_runs_and_everything_is_put_back():
    x = torch.tensor([0.0, 1.0])
    with check.unaided("torch.nn.functional.softmax", "torch.optim.AdamW"):
        ours = x.exp() / x.exp().sum()
        assert not isinstance(x, torch.optim.AdamW)
    torch.testing.assert_close(ours, F.softmax(x, -1))
    torch.testing.assert_close(ours, softmax(x, -1))
    assert torch.optim.AdamW([torch.nn.Parameter(x)]).defaults["lr"] == 1e-3


def test_a_name_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"there is no 'torch\.no_such'"), check.unaided("torch.no_such"):
        pass
    with pytest.raises(ValueError, match="there is no 'nothing'"), check.unaided("nothing"):
        pass
