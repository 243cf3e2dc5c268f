"""A model cut over ranks is the whole model: outputs, losses, gradients, 20 steps; and it sends what is predicted."""

from __future__ import annotations

from typing import Any

import pytest
import tensor_jobs as jobs
import torch
from llm_scale.ranks import Ranks
from llm_scale.tensor import gpt

# float32 sums in another order: a logit of size 0.1 moves by 1e-7, a gradient by 3e-8 (measured). AdamW divides a
# gradient by its own size, so that after 20 steps a weight may have moved by some 1e-5; a wrong gradient moves it by
# the rate, 1e-2, in a single step. A gradient's norm differs by 1e-6 in the first five steps, and by up to 3e-4 later,
# when the loss is small and its gradient the difference of large ones (measured on two kinds of CPU).
LOSS, GRADIENT, WEIGHT, EARLY_NORM, NORM = 1e-5, 1e-6, 1e-4, 1e-5, 3e-3


@pytest.fixture(scope="module")
def alone() -> dict[bool, dict[str, Any]]:
    return {tied: jobs.alone(tied) for tied in (True, False)}


def largest(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == reference.keys()
    return max((ours[name] - reference[name]).abs().max().item() for name in ours)


def same(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    assert ours["losses"] == pytest.approx(reference["losses"], abs=LOSS, rel=0)
    assert largest(ours["gradients"], reference["gradients"]) < GRADIENT
    assert largest(ours["weights"], reference["weights"]) < WEIGHT


def test_the_pairs_are_conjugate(two: Ranks) -> None:
    for rank, result in enumerate(two.run(jobs.regions)):
        one, other = torch.arange(8.0).view(1, 4, 2), torch.arange(8.0).view(1, 4, 2) + 100
        mine = (one, other)[rank]
        assert torch.equal(result["copy"], mine)
        assert torch.equal(result["copy backward"], torch.full((1, 4, 2), 11.0))  # 1 of rank 0, 10 of rank 1
        assert torch.equal(result["sum"], one + other)
        assert torch.equal(result["sum backward"], torch.full((1, 4, 2), 10.0**rank))
        positions = torch.arange(4.0).view(1, 2, 2)
        assert torch.equal(result["gather"], torch.cat([positions, positions + 100], dim=1))
        assert torch.equal(result["gather backward"], torch.full((1, 2, 2), 11.0))
        assert torch.equal(result["scatter"], (one + other).chunk(2, 1)[rank])
        expected = torch.tensor([1.0, 1.0, 10.0, 10.0]).view(1, 4, 1).expand(1, 4, 2)
        assert torch.equal(result["scatter backward"], expected)


def test_column_then_row_is_the_whole_pair(two: Ranks) -> None:
    for result in two.run(jobs.layers):
        assert len(result) == 12
        assert {name: value.item() for name, value in result.items() if value > 2e-6} == {}  # sums of 8, of size 1


@pytest.mark.parametrize("large", [1.0, 1_000.0])  # exp(1,000) is infinite: the largest must be taken off first
def test_a_cut_vocabulary(two: Ranks, large: float) -> None:
    for result in two.run(jobs.vocabulary, large):
        assert result["rows"] == 0 and result["rows' gradient"] == 0  # the others' zeros change nothing
        assert result["losses"] < 1e-6 * large and result["logits' gradient"] < 1e-6


@pytest.mark.parametrize(("tied", "sequence"), [(True, False), (False, True)])
def test_two_ranks_by_hand(two: Ranks, alone: Any, tied: bool, sequence: bool) -> None:
    check_by_hand(two, alone, tied, sequence)


@pytest.mark.parametrize(("tied", "sequence"), [(True, True), (False, False)])
def test_four_ranks_by_hand(four: Ranks, alone: Any, tied: bool, sequence: bool) -> None:
    check_by_hand(four, alone, tied, sequence)


def check_by_hand(ranks: Ranks, alone: Any, tied: bool, sequence: bool) -> None:
    """On the ring by hand, so that every byte is counted."""
    results = ranks.run(jobs.train, tied, sequence, ring=True)
    config, reference = jobs.config(tied), alone[tied]
    for result in results:
        same(result, reference)
        assert result["norms"][:5] == pytest.approx(reference["norms"][:5], rel=EARLY_NORM)
        assert result["norms"] == pytest.approx(reference["norms"], rel=NORM)
        assert torch.allclose(result["logits"], reference["logits"], rtol=0, atol=1e-6)
        for name, number in result["held"].items():  # a rank's N-th, and whole norms
            parts = 1 if gpt.cut_dimension(name) is None else ranks.size
            assert number == reference["weights"][name].numel() / parts, name
    for name in results[0]["held"]:
        if gpt.cut_dimension(name) is None:  # whole on every rank, and bit for bit the same after 20 steps
            assert torch.equal(results[0]["own"][name], results[-1]["own"][name])
            assert torch.equal(results[0]["own weights"][name], results[-1]["own weights"][name])
    parts = gpt.sent_bytes(config, 4, 16, ranks.size, sequence)
    layer = parts.pop("layer")
    assert {result["sent"] for result in results} == {config.num_hidden_layers * layer + sum(parts.values())}


def test_a_group_of_the_ranks(four: Ranks, alone: Any) -> None:
    """Ranks 0 and 1 hold one model, 2 and 3 another: nothing goes from one to the other."""
    for result in four.run(jobs.train, True, True, size=2):
        same(result, alone[True])


@pytest.mark.parametrize(("tied", "sequence"), [(True, False), (True, True), (False, True)])
def test_the_library(two: Ranks, alone: Any, tied: bool, sequence: bool) -> None:
    for result in two.run(jobs.train_library, tied, sequence):
        same(result, alone[tied])
        for name, number in result["held"].items():
            parts = 1 if gpt.cut_dimension(name) is None else 2
            assert number == alone[tied]["weights"][name].numel() / parts, name


def test_the_sequence_costs_the_norms_alone() -> None:
    """Its scatters and gathers send what the all-reduces did."""
    plain, cut = (gpt.sent_bytes(jobs.CONFIG, 4, 16, 4, sequence) for sequence in (False, True))
    norm = gpt.all_reduce_bytes(jobs.CONFIG.hidden_size, 4)
    assert cut == plain | {"layer": plain["layer"] + 2 * norm, "last norm": norm}
    # By hand: four all-reduces of 4 x 16 x 32 numbers in float32, 2 x 3 / 4 of it each.
    assert plain["layer"] == 4 * 2 * 3 * (4 * 16 * 32 * 4) // 4 == 49_152


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (
            {"num_attention_heads": 8, "num_key_value_heads": 2},
            "num_key_value_heads=2 cannot be divided among 4 ranks; make it a multiple of 4, or take 2 tensor-parallel "
            "ranks",
        ),
        ({"num_attention_heads": 2, "num_key_value_heads": 2}, "num_key_value_heads=2 cannot"),
        ({"intermediate_size": 30}, "intermediate_size=30 cannot be divided among 4 ranks"),
        (
            {"vocab_size": 61},
            "vocab_size=61 cannot be divided among 4 ranks; make it a multiple of 4, or take 1 tensor",
        ),
    ],
)
def test_what_cannot_be_divided(four: Ranks, sizes: dict[str, int], words: str) -> None:
    for said in four.run(jobs.refused, sizes):
        (same,) = said  # by hand and by the library
        assert same.startswith(words) and "\n" not in same


def test_positions_that_cannot_be_divided(two: Ranks) -> None:
    words = "15 positions cannot be divided among 2 ranks; fill the rows up to a multiple of 2, or leave sequence "
    assert two.run(jobs.refused, {}, sequence=True, time=15) == [{words + "parallelism out"}] * 2


def test_layers_that_cannot_be_divided(two: Ranks) -> None:
    for said in two.run(jobs.refused_layers):
        for name, words in zip(("out_features", "in_features", "vocab_size"), said[:3], strict=True):
            assert words.startswith(f"{name}=7 cannot be divided among 2 ranks; make it a multiple of 2")
        assert said[3].startswith("the ring by hand goes round all ranks")
