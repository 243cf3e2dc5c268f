"""FlashAttention as Triton kernels, forward and backward: what `tiled.py` does, with each tile in a GPU's own memory.

The same source runs compiled on a GPU and, on a machine without one, in Triton's interpreter. The interpreter is chosen
when this file is imported, before Triton is; `INTERPRETED` says which.

Letters: M queries and N keys of a tile, D channels of a head, T positions. Tensors are (heads of all rows, T, D),
contiguous; a program of the grid works on one tile of one head. Exponents are taken to base 2, which GPUs have in
hardware: LOG2E turns one into the other.
"""

from __future__ import annotations

import math
import os
import sys
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    # Triton makes its own functions for a GPU or for the interpreter when it is imported, and Lightning imports it.
    # What was made for a GPU that is not there is made anew; its compiled part stays.
    for name in [name for name in sys.modules if name.split(".")[0] == "triton" and "._C" not in name]:
        del sys.modules[name]

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LOG2E = tl.constexpr(math.log2(math.e))
WIDEN = tl.constexpr(INTERPRETED)  # the interpreter multiplies bfloat16 by its bits: there, products are of float32
HEAD_DIMS = (16, 32, 64, 128)

Heads = Float[Tensor, "batch heads time head_dim"]


class Blocks(NamedTuple):
    """Sizes of the tiles, and how a GPU shares out one program: warps of 32 threads, stages of loads in flight."""

    queries: int = 64
    keys: int = 64
    num_warps: int = 4
    num_stages: int = 3


@triton.jit
def load_tile(base, start, T, ROWS: tl.constexpr, D: tl.constexpr):
    """Rows start ... start + ROWS - 1 of a (T, D) matrix; zeros where there is none."""
    rows, columns = start + tl.arange(0, ROWS), tl.arange(0, D)
    tile = tl.load(base + rows[:, None] * D + columns[None, :], mask=rows[:, None] < T, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def store_tile(base, start, T, tile, ROWS: tl.constexpr, D: tl.constexpr):
    rows, columns = start + tl.arange(0, ROWS), tl.arange(0, D)
    tl.store(base + rows[:, None] * D + columns[None, :], tile.to(base.dtype.element_ty), mask=rows[:, None] < T)


@triton.jit
def hide_unseen(scores, row, column, T, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The scores of a tile, with -inf at keys that are past the text or after their query."""
    keys = column + tl.arange(0, N)[None, :]
    seen = keys < T
    if CAUSAL:
        seen = seen & (keys <= row + tl.arange(0, M)[:, None])
    return tl.where(seen, scores, -float("inf"))


@triton.jit
def attend(
    q, largest, total, weighted, K, V, row, first, last, T, scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Carry a tile of queries over the keys first ... last - 1."""
    for column in range(first, last, N):
        k, v = load_tile(K, column, T, N, D), load_tile(V, column, T, N, D)
        scores = tl.dot(q, tl.trans(k), input_precision=EXACT) * (scale * LOG2E)
        if MASKED:
            scores = hide_unseen(scores, row, column, T, CAUSAL, M, N)
        new = tl.maximum(largest, tl.max(scores, 1))
        shrink, weights = tl.exp2(largest - new), tl.exp2(scores - new[:, None])
        total = total * shrink + tl.sum(weights, 1)
        weighted = weighted * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=EXACT)
        largest = new
    return largest, total, weighted


@triton.jit(do_not_specialize=["T"])  # one compilation for every length
def forward_kernel(
    Q, K, V, OUT, SUMS, scale, T,
    CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One tile of queries against all the keys that it sees. Dao 2023, algorithm 1."""
    # In 64 bits: the last head of a large batch begins past 2^31 numbers.
    row, head = tl.program_id(0) * M, tl.program_id(1).to(tl.int64)
    place = head * T * D
    q = load_tile(Q + place, row, T, M, D)
    largest = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    weighted = tl.zeros([M, D], tl.float32)
    # Tiles that every query sees whole need no mask; it is asked for on the diagonal and at the text's end alone.
    whole = T // N * N
    last = T
    if CAUSAL:
        whole = row // N * N
        last = tl.minimum(T, row + M)
    largest, total, weighted = attend(
        q, largest, total, weighted, K + place, V + place, row, 0, whole, T, scale, False, CAUSAL, M, N, D, EXACT
    )
    largest, total, weighted = attend(
        q, largest, total, weighted, K + place, V + place, row, whole, last, T, scale, True, CAUSAL, M, N, D, EXACT
    )
    store_tile(OUT + place, row, T, weighted / total[:, None], M, D)
    rows = row + tl.arange(0, M)
    tl.store(SUMS + head * T + rows, (largest + tl.log2(total)) / LOG2E, mask=rows < T)


@triton.jit
def _to_scores(
    q, k, v, grad, sums, delta, row, column, T, scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A tile's weights, computed again from the log-sum-exps, and the gradient of its scores."""
    scores = tl.dot(q, tl.trans(k), input_precision=EXACT) * (scale * LOG2E)
    if MASKED:
        scores = hide_unseen(scores, row, column, T, CAUSAL, M, N)
    weights = tl.exp2(scores - sums[:, None] * LOG2E)
    return weights, weights * (tl.dot(grad, tl.trans(v), input_precision=EXACT) - delta[:, None])


@triton.jit
def _gather_keys(
    k, v, dk, dv, Q, GRAD, SUMS, DELTA, column, first, last, T, scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Add what the queries first ... last - 1 give to a tile of keys and values. Rows past the text are zeros."""
    for row in range(first, last, M):
        q, grad = load_tile(Q, row, T, M, D), load_tile(GRAD, row, T, M, D)
        rows = row + tl.arange(0, M)
        sums = tl.load(SUMS + rows, mask=rows < T, other=0.0)
        delta = tl.load(DELTA + rows, mask=rows < T, other=0.0)
        weights, scores = _to_scores(q, k, v, grad, sums, delta, row, column, T, scale, MASKED, CAUSAL, M, N, EXACT)
        dv += tl.dot(tl.trans(weights).to(grad.dtype), grad, input_precision=EXACT)
        dk += tl.dot(tl.trans(scores).to(q.dtype), q, input_precision=EXACT)
    return dk, dv


@triton.jit(do_not_specialize=["T"])  # one compilation for every length
def _backward_keys(
    Q, K, V, GRAD, SUMS, DELTA, DK, DV, scale, T,
    CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values, from all the queries that see it. Dao 2023, algorithm 2."""
    column, head = tl.program_id(0) * N, tl.program_id(1).to(tl.int64)
    place, line = head * T * D, head * T
    k, v = load_tile(K + place, column, T, N, D), load_tile(V + place, column, T, N, D)
    dk, dv = tl.zeros([N, D], tl.float32), tl.zeros([N, D], tl.float32)
    if CAUSAL:
        first = column // M * M
        whole = tl.minimum((column + N + M - 2) // M * M, T)  # from here on every query sees the whole tile
        dk, dv = _gather_keys(
            k, v, dk, dv, Q + place, GRAD + place, SUMS + line, DELTA + line, column, first, whole, T, scale,
            True, CAUSAL, M, N, D, EXACT,
        )  # fmt: skip
        dk, dv = _gather_keys(
            k, v, dk, dv, Q + place, GRAD + place, SUMS + line, DELTA + line, column, whole, T, T, scale,
            False, CAUSAL, M, N, D, EXACT,
        )  # fmt: skip
    else:
        dk, dv = _gather_keys(
            k, v, dk, dv, Q + place, GRAD + place, SUMS + line, DELTA + line, column, 0, T, T, scale,
            True, CAUSAL, M, N, D, EXACT,
        )  # fmt: skip
    store_tile(DK + place, column, T, dk * scale, N, D)
    store_tile(DV + place, column, T, dv, N, D)


@triton.jit
def _gather_queries(
    q, grad, sums, delta, dq, K, V, row, first, last, T, scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Add what the keys first ... last - 1 give to a tile of queries."""
    for column in range(first, last, N):
        k, v = load_tile(K, column, T, N, D), load_tile(V, column, T, N, D)
        _, scores = _to_scores(q, k, v, grad, sums, delta, row, column, T, scale, MASKED, CAUSAL, M, N, EXACT)
        dq += tl.dot(scores.to(k.dtype), k, input_precision=EXACT)
    return dq


@triton.jit(do_not_specialize=["T"])  # one compilation for every length
def _backward_queries(
    Q, K, V, GRAD, SUMS, DELTA, DQ, scale, T,
    CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries, from all the keys that it sees."""
    row, head = tl.program_id(0) * M, tl.program_id(1).to(tl.int64)
    place = head * T * D
    q, grad = load_tile(Q + place, row, T, M, D), load_tile(GRAD + place, row, T, M, D)
    rows = row + tl.arange(0, M)
    sums = tl.load(SUMS + head * T + rows, mask=rows < T, other=0.0)
    delta = tl.load(DELTA + head * T + rows, mask=rows < T, other=0.0)
    dq = tl.zeros([M, D], tl.float32)
    whole = T // N * N
    last = T
    if CAUSAL:
        whole = row // N * N
        last = tl.minimum(T, row + M)
    dq = _gather_queries(
        q, grad, sums, delta, dq, K + place, V + place, row, 0, whole, T, scale, False, CAUSAL, M, N, D, EXACT
    )
    dq = _gather_queries(
        q, grad, sums, delta, dq, K + place, V + place, row, whole, last, T, scale, True, CAUSAL, M, N, D, EXACT
    )
    store_tile(DQ + place, row, T, dq * scale, M, D)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, blocks: Blocks, back: Blocks) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        batch, heads, time, width = q.shape
        out = torch.empty_like(q)
        sums = torch.empty(batch, heads, time, dtype=torch.float32, device=q.device)
        forward_kernel[(triton.cdiv(time, blocks.queries), batch * heads)](
            q, k, v, out, sums, 1 / math.sqrt(width), time, *_shape(causal, blocks, q), **_launch(blocks)
        )
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.causal, ctx.back = causal, back
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        q, k, v, out, sums = ctx.saved_tensors
        grad = upstream[0].contiguous()
        batch, heads, time, width = q.shape
        delta = (grad.float() * out.float()).sum(dim=-1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        shared = (q, k, v, grad, sums, delta)
        last = (1 / math.sqrt(width), time, *_shape(ctx.causal, ctx.back, q))
        tiles = (triton.cdiv(time, ctx.back.keys), batch * heads)
        _backward_keys[tiles](*shared, dk, dv, *last, **_launch(ctx.back))
        tiles = (triton.cdiv(time, ctx.back.queries), batch * heads)
        _backward_queries[tiles](*shared, dq, *last, **_launch(ctx.back))
        return dq, dk, dv, None, None, None


def _shape(causal: bool, blocks: Blocks, q: Tensor) -> tuple[Any, ...]:
    # Products of float32 in float32: Triton's default would round their factors to tf32.
    return causal, blocks.queries, blocks.keys, q.shape[3], "ieee" if q.dtype == torch.float32 else "tf32"


def _launch(blocks: Blocks) -> dict[str, int]:
    return {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages}


def flash_attention(
    q: Heads,
    k: Heads,
    v: Heads,
    causal: bool = True,
    blocks: Blocks | None = None,
    backward_blocks: Blocks | None = None,
) -> Heads:
    """softmax(q k^T / sqrt(D)) v by the kernels of this file; its gradients too.

    Args:
        q, k, v: float32, float16 or bfloat16, with equally many heads; products are summed in float32.
        causal: hide the keys after each query.
        blocks: of the forward pass (64 x 64); powers of two, 16 or more.
        backward_blocks: of the backward pass (as `blocks`).

    Raises:
        ValueError: for shapes, dtypes or devices that the kernels do not take.
    """
    if not q.shape == k.shape == v.shape:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} must have one shape")
    if q.shape[3] not in HEAD_DIMS:
        raise ValueError(f"head_dim={q.shape[3]} must be one of {HEAD_DIMS}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; one of float32, float16, bfloat16 for all")
    if q.is_cuda == INTERPRETED:
        reason = "TRITON_INTERPRET=1 is set: unset it" if q.is_cuda else "the kernels are compiled for a GPU"
        raise ValueError(f"tensors on {q.device}, and {reason}, or move the tensors")
    blocks = blocks or Blocks()
    for sizes in filter(None, (blocks, backward_blocks)):
        for size in (sizes.queries, sizes.keys):
            if size < 16 or size & (size - 1):
                raise ValueError(f"a tile of {size} must be a power of two, 16 or more")
    out: Tensor = _Flash.apply(q, k, v, causal, blocks, backward_blocks or blocks)
    return out
