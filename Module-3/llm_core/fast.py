"""The model's norm and rotation with fewer passes over memory, for training on a CPU in float32 without a compiler.

There, an element-wise operation costs the reading and writing of its numbers, and `RMSNorm` and `rotate` are many of
them. The forms here compute the same from the same weights; tests hold outputs and gradients to the plain ones. Any
other case (16-bit floats, a GPU, generation, `torch.compile`) takes the plain form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_core.masks import Mask
from llm_core.model import Attention, Hidden, KeyValueCache, RMSNorm, Rotary


def fast(model: nn.Module) -> nn.Module:
    """The same model, with the forms below for its norms and attentions; names and weights are as they were."""
    swapped = {RMSNorm: FastRMSNorm, Attention: FastAttention}
    for module in model.modules():
        # A class and not a new module: hooks, names and states stay, and copies and pickles of it work.
        module.__class__ = swapped.get(type(module), type(module))
    return model


def _here(x: Tensor) -> bool:
    plain = type(x) is Tensor  # not a tensor that is spread over devices
    kind = plain and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return kind and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class FastRMSNorm(RMSNorm):
    """RMSNorm: three passes forward, three backward."""

    def forward(self, x: Hidden) -> Hidden:
        if not _here(x) or type(self.weight.data) is not Tensor:
            return super().forward(x)
        result: Hidden = _Norm.apply(x, self.weight, self.eps)
        return result


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        grad, width = grad.contiguous(), x.shape[-1]
        # LayerNorm's gradient with a mean of 0 is this one's, less the mean of what arrives: that is put back.
        of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [width], torch.zeros_like(inverse), inverse, weight, None, [True, True, False]
        )
        return of_x.add_((grad @ weight).unsqueeze(-1).mul_(inverse).div_(width)), of_weight, None


class FastAttention(Attention):
    """Attention whose pairs of channels are turned as complex numbers: one product in place of five operations.

    A pair's two channels end side by side, in queries and keys alike, which leaves their scores as they are.
    """

    def forward(self, x: Hidden, rotation: Rotary, mask: Mask | None, cache: KeyValueCache | None) -> Hidden:
        if cache is not None or not _here(x):
            return super().forward(x, rotation, mask, cache)
        batch, time, _ = x.shape
        half = self.config.head_dim // 2
        # (batch or 1, T, 1, D / 2)
        turn = torch.complex(rotation.cos[..., :half], rotation.sin[..., :half]).transpose(1, 2)
        split = (batch, time, -1, self.config.head_dim)
        q, k = (_turned(project(x).view(split), turn).transpose(1, 2) for project in (self.q_proj, self.k_proj))
        v = self.v_proj(x).view(split).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and time > 1, enable_gqa=k.shape[1] != q.shape[1],
            dropout_p=self.config.attention_dropout if self.training else 0.0,
        )  # fmt: skip
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, -1))


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    return torch.view_as_real(torch.complex(*x.chunk(2, dim=-1)).mul_(turn)).flatten(-2)
