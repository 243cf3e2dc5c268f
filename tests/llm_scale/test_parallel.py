"""Data parallel and ZeRO by hand: the losses and weights of one process, of torch's own forms, and the bytes held."""

import parallel_jobs as jobs
import pytest
import torch
from llm_core.costs.counts import num_parameters
from llm_scale.parallel.shards import refuse_unless_elementwise
from llm_scale.parallel.zero3 import blocks_of

# Sums in another order differ by 1e-7 of a gradient; AdamW divides a gradient by its size, and where both are tiny that
# difference becomes a part of a step: 20 steps of 2e-3.
CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(scope="module")
def alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield jobs.alone()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", ["two", "four"])
@pytest.mark.parametrize("kind", ["naive", "bucketed", "zero1", "zero2", "zero3"])
def test_as_one_process(kind, size, alone, request):
    losses, weights = alone
    assert losses[-1] < losses[0] - 0.1  # it trains
    results = request.getfixturevalue(size).run(jobs.train, kind)
    for result in results:
        torch.testing.assert_close(result["losses"], losses, **CLOSE)
        torch.testing.assert_close(result["weights"], weights, **CLOSE)
        assert max(result["norms"]) > jobs.NORM  # clipping had something to do
        assert result["norms"] == results[0]["norms"]


@pytest.mark.parametrize("size", ["two", "four"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_as_torchs_own(kind, size, alone, request):
    for losses, weights in request.getfixturevalue(size).run(jobs.library, kind):
        torch.testing.assert_close(losses, alone[0], **CLOSE)
        torch.testing.assert_close(weights, alone[1], **CLOSE)


def test_checkpointing_under_stage_three(two, alone):
    for result in two.run(jobs.train, "zero3", checkpointing=True):
        torch.testing.assert_close(result["losses"], alone[0], **CLOSE)


@pytest.mark.parametrize("kind", ["zero1", "zero2", "zero3"])
def test_sixteen_bits_with_a_master_copy(kind, two):
    """As one process that steps a copy in 32 bits. Weights that were stepped in 16 bits are ten times the bound off."""
    expected = jobs.alone_with_a_master_copy()
    for result in two.run(jobs.train, kind, bf16=True):
        torch.testing.assert_close(result["losses"], expected, atol=2e-3, rtol=0)  # 4e-4 seen: sums of 16-bit numbers


def test_bytes_on_the_wire(four):
    """Data parallel sends 2 (N - 1) / N of P a backward pass; stage 3 once more, but its root comes only once."""
    N, P, backward_passes = 4, 4 * num_parameters(jobs.CONFIG), jobs.STEPS * jobs.ACCUMULATE
    root = 4 * (jobs.CONFIG.vocab_size + 1) * jobs.CONFIG.hidden_size
    sent = {kind: four.run(jobs.train, kind, ring=True)[0]["sent"] for kind in ("naive", "zero3")}
    assert sent["naive"] == jobs.STEPS * 2 * (N - 1) / N * P
    # After the last reduction the root is freed, and gathered again by the next forward pass.
    assert sent["zero3"] == pytest.approx(backward_passes * (N - 1) / N * (3 * P - root), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["zero1", "zero2", "zero3"])
def test_bytes_held(kind, dtype, two):
    """4P of weights, 4P of gradients, 8P of states: each over N from its stage on. In 16 bits a master copy besides."""
    P, N = num_parameters(jobs.CONFIG), 2  # every tensor of the model has an even number of values
    narrow, full = (4, 4 * P) if dtype == torch.float32 else (2, 2 * P)
    copies = 4 * P // N if narrow == 2 else 0  # of weights, and of the gradients' shares
    expected = {
        "weights": full + copies if kind != "zero3" else 4 * P // N,
        "gradients": full + copies if kind == "zero1" else 4 * P // N,
        "states": 8 * P // N,
    }
    if kind == "zero1" and narrow == 4:  # a share is a view of the whole gradient
        expected["gradients"] = full
    for found in two.run(jobs.held, kind, dtype):
        assert found == expected


def test_layers_that_a_rank_does_not_use(two):
    for one, other in two.run(jobs.unused):
        torch.testing.assert_close(one, torch.full((3, 3), 0.5))
        torch.testing.assert_close(other, torch.full((3, 3), 0.5))


def test_refusals():
    with pytest.raises(ValueError, match="LBFGS steps a parameter as a whole"):
        refuse_unless_elementwise(torch.optim.LBFGS)
    with pytest.raises(ValueError, match="name its units yourself"):
        blocks_of(torch.nn.Linear(2, 2))
