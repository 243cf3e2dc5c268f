"""Attention in tiles and as a Triton kernel: equal to PyTorch's, outputs and gradients, at any length and tile."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from llm_precision.attention.tiled import naive_attention, online_softmax_attention, tiled_attention
from llm_precision.meters import held_and_peak
from torch.nn.functional import scaled_dot_product_attention

kernel = pytest.importorskip("llm_precision.attention.kernel", reason="Triton is made for Linux only")
DEVICE = "cpu" if kernel.INTERPRETED else "cuda"


def inputs(time: int, width: int = 16, dtype: torch.dtype = torch.float32, heads: int = 2, device: str = "cpu"):
    torch.manual_seed(time)
    shape = (2, heads, time, width)
    return tuple(torch.randn(shape).to(device, dtype).requires_grad_() for _ in range(3))


def with_gradients(way, q, k, v, upstream):
    out = way(q, k, v)
    return (out, *torch.autograd.grad(out, (q, k, v), upstream))


def assert_equal(ours, theirs, bound):
    for name, found, wanted in zip(("out", "q", "k", "v"), ours, theirs, strict=True):
        error = (found.double() - wanted.double()).norm() / wanted.double().norm()
        # One key has a weight of 1 whatever its score: those gradients are 0, and their rounding is all there is.
        assert error < bound or (found - wanted).abs().max() < 1e-5, (name, error)


WAYS = {
    "naive": lambda causal, q, k, v: naive_attention(q, k, v, causal),
    "tiled": lambda causal, q, k, v: tiled_attention(q, k, v, causal, 16),
    "tiled, odd block": lambda causal, q, k, v: tiled_attention(q, k, v, causal, 7),
    "kernel": lambda causal, q, k, v: kernel.flash_attention(q, k, v, causal, kernel.Blocks(16, 16)),
    "kernel, tall tiles": lambda causal, q, k, v: kernel.flash_attention(q, k, v, causal, kernel.Blocks(32, 16)),
    "kernel, wide tiles": lambda causal, q, k, v: kernel.flash_attention(q, k, v, causal, kernel.Blocks(16, 32)),
    "kernel, two sizes": lambda causal, q, k, v: kernel.flash_attention(
        q, k, v, causal, kernel.Blocks(16, 32), kernel.Blocks(32, 16)
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("time", [1, 15, 16, 17, 32, 47])
def test_outputs_and_gradients_are_torchs(way, causal, time):
    device = DEVICE if way.startswith("kernel") else "cpu"
    q, k, v = inputs(time, device=device)
    upstream = torch.randn_like(q)
    ours = with_gradients(lambda *each: WAYS[way](causal, *each), q, k, v, upstream)
    theirs = with_gradients(lambda *each: scaled_dot_product_attention(*each, is_causal=causal), q, k, v, upstream)
    assert_equal(ours, theirs, 2e-6)


@pytest.mark.parametrize("width", kernel.HEAD_DIMS)
def test_the_kernel_takes_every_width(width):
    q, k, v = inputs(20, width, device=DEVICE)
    upstream = torch.randn_like(q)
    ours = with_gradients(kernel.flash_attention, q, k, v, upstream)
    theirs = with_gradients(naive_attention, q, k, v, upstream)
    assert_equal(ours, theirs, 2e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_the_kernel_in_half_precision_is_as_good_as_its_format(dtype, bound):
    """Held to float64. The bound is a few roundings: half of float16's spacing is 5e-4, of bfloat16's 4e-3."""
    q, k, v = inputs(40, 32, dtype, device=DEVICE)
    upstream = torch.randn_like(q)
    ours = with_gradients(kernel.flash_attention, q, k, v, upstream)
    wide = [each.detach().double().requires_grad_() for each in (q, k, v)]
    assert_equal(ours, with_gradients(naive_attention, *wide, upstream.double()), bound)


def test_large_scores_overflow_neither():
    q, k, v = inputs(24)
    with torch.no_grad():
        big = (q * 300, k * 300, v)
        wanted = scaled_dot_product_attention(*big, is_causal=True)
        assert torch.isfinite(tiled_attention(*big, block=8)).all()
        torch.testing.assert_close(tiled_attention(*big, block=8), wanted, rtol=1e-4, atol=1e-4)
        moved = [each.to(DEVICE) for each in big]
        torch.testing.assert_close(kernel.flash_attention(*moved).cpu(), wanted, rtol=1e-4, atol=1e-4)


def test_the_gradients_are_those_of_finite_differences():
    q, k, v = (torch.randn(1, 1, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for causal in (True, False):
        assert torch.autograd.gradcheck(lambda q, k, v, c=causal: tiled_attention(q, k, v, c, 2), (q, k, v))


def test_the_log_sum_exps_are_those_of_the_scores():
    q, k, v = inputs(13)
    _, sums = online_softmax_attention(q, k, v, causal=True, block=4)
    scores = q @ k.transpose(-2, -1) / math.sqrt(16)
    hidden = torch.ones(13, 13, dtype=torch.bool).triu(1)
    torch.testing.assert_close(sums, scores.masked_fill(hidden, -math.inf).logsumexp(-1))


@pytest.mark.parametrize("way", ["tiled", "kernel"])
def test_memory_grows_with_the_length_not_with_its_square(way):
    """Twice the positions: the table of scores takes four times the bytes, tiles twice."""
    if way == "kernel" and DEVICE == "cuda":
        pytest.skip("a GPU's allocator is asked in the records")
    attend = {"tiled": lambda *each: tiled_attention(*each, True, 16), "kernel": kernel.flash_attention}[way]
    peaks = {}
    for time in (64, 128):
        for name, function in (("naive", naive_attention), (way, attend)):
            q, k, v = inputs(time, 16, heads=1)

            def work(function=function, q=q, k=k, v=v):
                return torch.autograd.grad(function(q, k, v).sum(), (q, k, v))

            _, held, peak = held_and_peak(lambda work=work: work)
            peaks[name, time] = peak - held
    assert 3.5 < peaks["naive", 128] / peaks["naive", 64] < 4.1
    assert peaks[way, 128] / peaks[way, 64] < 2.2


def test_what_the_kernel_does_not_take_is_refused():
    q, k, v = inputs(8, device=DEVICE)
    with pytest.raises(ValueError, match="head_dim=24 must be one of"):
        kernel.flash_attention(*inputs(8, 24, device=DEVICE))
    with pytest.raises(ValueError, match="must have one shape"):
        kernel.flash_attention(q, k[:, :, :4], v)
    with pytest.raises(ValueError, match=r"one of float32, float16, bfloat16 for all"):
        kernel.flash_attention(q, k, v.double())
    with pytest.raises(ValueError, match="a tile of 24 must be a power of two"):
        kernel.flash_attention(q, k, v, True, kernel.Blocks(24, 16))
    with pytest.raises(ValueError, match="block=0 must be 1 or more"):
        tiled_attention(q, k, v, True, 0)
    with pytest.raises(Exception, match=r"must have one shape|heads"):  # the tests' own check of shapes is first
        tiled_attention(q, k[:, :1], v)


@pytest.mark.skipif(DEVICE == "cuda", reason="there the kernels are compiled by every test above")
def test_the_kernels_compile_for_an_h100_without_one():
    """Triton's compiler needs no GPU: what the interpreter has proved equal also becomes machine code for Hopper."""
    program = """
        import torch, triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from llm_precision.attention import kernel

        sizes = {"CAUSAL": True, "M": 64, "N": 64, "D": 64, "EXACT": "tf32"}
        kinds = {"SUMS": "*fp32", "DELTA": "*fp32", "scale": "fp32", "T": "i32"}
        for function in (kernel.forward_kernel, kernel._backward_keys, kernel._backward_queries):
            names = function.arg_names
            signature = {name: "constexpr" if name in sizes else kinds.get(name, "*bf16") for name in names}
            source = ASTSource(function, signature, {(names.index(name),): value for name, value in sizes.items()})
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
            assert "wgmma" in made.asm["ptx"], "the products must run on Hopper's matrix units"
            print(function.__name__, len(made.asm["cubin"]))
    """
    environ = {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=240,
        env={**os.environ, **environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 3


def test_it_does_not_matter_who_imported_triton_first():
    """Lightning imports Triton: its functions are then made for a GPU, and must be made anew for the interpreter."""
    program = (
        "import pytorch_lightning, torch\n"
        "from llm_precision.attention.kernel import flash_attention\n"
        "q = torch.randn(1, 1, 20, 16)\n"
        "torch.testing.assert_close(flash_attention(q, q, q),"
        " torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True))\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, env=environ)
    assert DEVICE == "cuda" or done.returncode == 0, done.stderr[-2000:]
