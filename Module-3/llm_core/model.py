"""A decoder-only transformer with the configuration, the parameter names and the numbers of Hugging Face's Llama.

Names say shapes: B rows of a batch, T positions, S positions of the keys (T and those in the cache before), H heads of
queries, K heads of keys and values, D width of a head, C the residual stream.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from llm_core.config import GPTConfig
from llm_core.losses import causal_loss
from llm_core.masks import Mask, packed_mask, padding_mask

Ids = Int[Tensor, "batch time"]
Positions = Int[Tensor, "#batch time"]
Hidden = Float[Tensor, "batch time hidden"]
Heads = Float[Tensor, "batch heads time head_dim"]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps), times a learned weight; the statistics in float32. Zhang and Sennrich 2019, eq. 4."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Hidden) -> Hidden:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Rotary(NamedTuple):
    """cos and sin of position times frequency, both (batch or 1, 1, T, D)."""

    cos: Tensor
    sin: Tensor


def rotary(position_ids: Positions, head_dim: int, theta: float) -> Rotary:
    """The rotations of positions: frequency i of D/2 is theta^(-2i/D), and serves channels i and i + D/2.

    Su et al. 2021, eq. 34, with the pairing of Llama's published weights (i with i + D/2, not 2i with 2i + 1).
    """
    index = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids[:, None, :, None].float() / theta ** (index / head_dim)  # (B, 1, T, D/2)
    angles = torch.cat([angles, angles], dim=-1)
    return Rotary(angles.cos(), angles.sin())


def rotate(x: Heads, rotation: Rotary) -> Heads:
    """Turn each pair of channels (i, i + D/2) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * rotation.cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * rotation.sin.to(x.dtype)


class KeyValueCache:
    """Keys and values of the positions so far, one pair of (B, K, S, D) a layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions of a layer, and give all of them back."""
        if layer == len(self.layers):
            self.layers.append((keys, values))
        else:
            old_keys, old_values = self.layers[layer]
            self.layers[layer] = (torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2))
        return self.layers[layer]


class Attention(nn.Module):
    """Causal self-attention with rotary positions; query heads share keys and values (Ainslie et al. 2023)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Hidden, rotation: Rotary, mask: Mask | None, cache: KeyValueCache | None) -> Hidden:
        batch, time, _ = x.shape
        split = (batch, time, -1, self.config.head_dim)
        q = rotate(self.q_proj(x).view(split).transpose(1, 2), rotation)  # (B, H, T, D)
        k = rotate(self.k_proj(x).view(split).transpose(1, 2), rotation)  # (B, K, T, D)
        v = self.v_proj(x).view(split).transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, K, S, D)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and time > 1, enable_gqa=k.shape[1] != q.shape[1],
            dropout_p=self.config.attention_dropout if self.training else 0.0,
        )  # fmt: skip
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, -1))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). Shazeer 2020, eq. 6."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Hidden) -> Hidden:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then MLP, each behind a norm and beside the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Hidden, rotation: Rotary, mask: Mask | None, cache: KeyValueCache | None) -> Hidden:
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Output(NamedTuple):
    """`loss` is None without labels; `logits` are (B, T, vocab_size)."""

    loss: Tensor | None
    logits: Tensor


class Decoder(nn.Module):
    """Embedding, blocks and last norm: what Llama calls `model`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids: Ids, position_ids: Positions, mask: Mask | None, cache: KeyValueCache | None) -> Hidden:
        rotation = rotary(position_ids, self.config.head_dim, self.config.rope_theta)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, rotation, mask, cache)
        return self.norm(x)


def initialise(model: nn.Module, std: float) -> None:
    """Draw every matrix of a model anew, from a normal distribution around 0; norms stay at 1, and no layer has a
    bias."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)


class GPT(nn.Module):
    """The language model. Its state dict is that of `LlamaForCausalLM` with the same configuration, name by name."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        initialise(self, config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.stop_ids: tuple[int, ...] = ()  # tokens that end a text, where a folder names some beside the tokenizer's

    def features(
        self,
        input_ids: Ids,
        position_ids: Ids | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Hidden:
        """What the head reads, (B, T, C); arguments as for `forward`."""
        before = 0 if cache is None else len(cache)
        time = input_ids.shape[1]
        self.config.refuse_longer(before + time)
        mask = None if position_ids is None else packed_mask(position_ids, before)
        if attention_mask is None and mask is None and before and time > 1:  # is_causal knows square masks only
            attention_mask = input_ids.new_ones(1, before + time)
        if attention_mask is not None:
            mask = padding_mask(attention_mask, time) & (True if mask is None else mask)
            if position_ids is None:
                position_ids = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)[:, before:]
        if position_ids is None:
            position_ids = torch.arange(before, before + time, device=input_ids.device)[None]
        return self.model(input_ids, position_ids, mask, cache)

    def forward(
        self,
        input_ids: Ids,
        labels: Ids | None = None,
        position_ids: Ids | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Output:
        """Logits for the token after each position, and the mean loss over the targets.

        Args:
            labels: the same ids, -100 where there is no target; the shift is made here.
            position_ids: of packed rows: they start again at 0 with each document, and attention stays inside, also
                where a cache cuts a row.
            attention_mask: of padded rows, 1 for tokens; covers the cache's positions too.
            cache: of the positions before; extended in place.
        """
        logits = self.lm_head(self.features(input_ids, position_ids, attention_mask, cache))
        return Output(None if labels is None else self.loss(logits, labels), logits)

    def loss(self, logits: Float[Tensor, "batch time vocab"], labels: Ids) -> Float[Tensor, ""]:
        """The mean over the targets, in nats; 0 where there is none."""
        total, targets = causal_loss(logits, labels)
        return total / targets.clamp(min=1)


@torch.no_grad()
def scale_residual_outputs(model: GPT) -> None:
    """Divide the matrices that write into the residual stream by sqrt(2 L), in place, once after initialisation.

    Each of the 2 L sublayers then adds a share 1 / (2 L) of the variance, and the stream does not grow with depth.
    Radford et al. 2019, section 2.3.
    """
    factor = 1 / math.sqrt(2 * model.config.num_hidden_layers)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_(factor)
