"""Attention twice: with the whole table of scores, and tile by tile with an online softmax.

Shapes: q, k, v and the output are (batch, heads, time, head_dim); a log-sum-exp is (batch, heads, time).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Heads = Float[Tensor, "batch heads time head_dim"]
Rows = Float[Tensor, "batch heads time"]


def naive_attention(q: Heads, k: Heads, v: Heads, causal: bool = True) -> Heads:
    """softmax(q k^T / sqrt(D)) v with the T x T table in memory. Vaswani et al. 2017, eq. 1."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
    if causal:
        time = q.shape[2]
        future = torch.ones(time, time, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return scores.softmax(dim=-1) @ v


def visible(scores: Tensor, row: int, column: int, causal: bool) -> Tensor:
    """The scores of a tile whose first query is `row` and first key `column`, with -inf at keys of the future."""
    if not causal:
        return scores
    rows, columns = scores.shape[-2:]
    queries = torch.arange(row, row + rows, device=scores.device)[:, None]
    keys = torch.arange(column, column + columns, device=scores.device)
    return scores.masked_fill(keys > queries, -math.inf)


def online_softmax_attention(q: Heads, k: Heads, v: Heads, causal: bool, block: int) -> tuple[Heads, Rows]:
    """Attention whose largest table is `block` x `block`, and the log-sum-exp of each query's scores.

    Three things are carried from tile to tile for each query: the largest score m so far, the sum l of exp(score - m),
    and the sum of the values weighted alike. A larger m shrinks the two sums by exp(old m - new m). Dao 2023,
    algorithm 1.
    """
    time, scale = q.shape[2], 1 / math.sqrt(q.shape[-1])
    outputs, sums = [], []
    for row in range(0, time, block):
        tile = q[:, :, row : row + block] * scale
        largest = tile.new_full(tile.shape[:3], -math.inf)
        total = torch.zeros_like(largest)
        weighted = torch.zeros_like(tile)
        last = min(row + block, time) if causal else time
        for column in range(0, last, block):
            keys, values = k[:, :, column : column + block], v[:, :, column : column + block]
            scores = visible(tile @ keys.transpose(-2, -1), row, column, causal)  # (B, H, block, block)
            new = torch.maximum(largest, scores.amax(dim=-1))
            shrink, weights = (largest - new).exp(), (scores - new[..., None]).exp()
            total = total * shrink + weights.sum(dim=-1)
            weighted = weighted * shrink[..., None] + weights @ values
            largest = new
        outputs.append(weighted / total[..., None])
        sums.append(largest + total.log())
    return torch.cat(outputs, dim=2), torch.cat(sums, dim=2)


class Tiled(torch.autograd.Function):
    """Keeps q, k, v, the output and one number a query; the backward pass computes each tile's weights again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, block: int) -> Tensor:
        out, logsumexp = online_softmax_attention(q, k, v, causal, block)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.causal, ctx.block = causal, block
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        q, k, v, out, logsumexp = ctx.saved_tensors
        (grad,) = upstream
        block, time, scale = ctx.block, q.shape[2], 1 / math.sqrt(q.shape[-1])
        # What the softmax's Jacobian takes off: sum_j p_j (grad . v_j), which is grad . out. Dao et al. 2022, eq. 4.
        delta = (grad * out).sum(dim=-1, keepdim=True)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for row in range(0, time, block):
            rows = slice(row, row + block)
            last = min(row + block, time) if ctx.causal else time
            for column in range(0, last, block):
                columns = slice(column, column + block)
                scores = q[:, :, rows] @ k[:, :, columns].transpose(-2, -1) * scale
                weights = (visible(scores, row, column, ctx.causal) - logsumexp[:, :, rows, None]).exp()
                dv[:, :, columns] += weights.transpose(-2, -1) @ grad[:, :, rows]
                to_weights = grad[:, :, rows] @ v[:, :, columns].transpose(-2, -1)
                to_scores = weights * (to_weights - delta[:, :, rows]) * scale
                dq[:, :, rows] += to_scores @ k[:, :, columns]
                dk[:, :, columns] += to_scores.transpose(-2, -1) @ q[:, :, rows]
        return dq, dk, dv, None, None


def tiled_attention(q: Heads, k: Heads, v: Heads, causal: bool = True, block: int = 64) -> Heads:
    """FlashAttention in plain PyTorch: equal to `naive_attention`, and no T x T table is ever in memory.

    Args:
        q, k, v: queries, keys, values, with equally many heads.
        causal: hide the keys after each query.
        block: queries, and keys, of a tile.

    Raises:
        ValueError: for a block below 1, or keys of another shape than the queries'.
    """
    if block < 1:
        raise ValueError(f"block={block} must be 1 or more")
    if not q.shape == k.shape == v.shape:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} must have one shape")
    out: Tensor = Tiled.apply(q, k, v, causal, block)
    return out
