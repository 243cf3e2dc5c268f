"""The two other families, from the blocks of `llm_core.model`: an encoder, and an encoder with a decoder.

Letters as there; S is the number of positions of the source that a decoder reads.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from llm_data.rows.documents import IGNORE_INDEX
from torch import Tensor, nn
from torch.nn import functional as F

from llm_core.masks import packed_mask, padding_mask
from llm_core.model import (
    Attention,
    Decoder,
    GPTConfig,
    Hidden,
    Ids,
    KeyValueCache,
    Output,
    RMSNorm,
    Rotary,
    SwiGLU,
    initialise,
    rotary,
)

Source = Float[Tensor, "batch source hidden"]
SourceMask = Bool[Tensor, "#batch 1 #time source"]


def label_loss(logits: Float[Tensor, "batch time vocab"], labels: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of labels that stand where their logits do; -100 is no target."""
    total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


class Encoder(nn.Module):
    """The blocks of `GPT` under the same names, which here look to both sides; labels are not shifted.

    No kind of GPT: what is trained, sampled or saved as one looks back only. And it keeps no cache: a new token would
    change all that was computed before.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)  # a stack of blocks: its mask makes it an encoder
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        initialise(self, config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def features(
        self,
        input_ids: Ids,
        position_ids: Ids | None = None,
        attention_mask: Int[Tensor, "batch time"] | None = None,
    ) -> Hidden:
        """What the head reads, (B, T, C); arguments as for `forward`."""
        time = input_ids.shape[1]
        self.config.refuse_longer(time)
        mask = torch.ones(1, 1, time, time, dtype=torch.bool, device=input_ids.device)
        if attention_mask is not None:
            mask = mask & padding_mask(attention_mask, time, causal=False)
        if position_ids is not None:
            mask = mask & packed_mask(position_ids, causal=False)
        if position_ids is None:
            position_ids = torch.arange(time, device=input_ids.device)[None]
        return self.model(input_ids, position_ids, mask, None)

    def forward(
        self,
        input_ids: Ids,
        labels: Ids | None = None,
        position_ids: Ids | None = None,
        attention_mask: Int[Tensor, "batch time"] | None = None,
    ) -> Output:
        """Logits for each position's own token, and the mean loss over the labels.

        Args:
            labels: each stands at its own position; -100 where there is none.
            position_ids: of packed rows: they start again at 0 with each document, and attention stays inside.
            attention_mask: of padded rows, 1 for tokens.
        """
        logits = self.lm_head(self.features(input_ids, position_ids, attention_mask))
        return Output(None if labels is None else label_loss(logits, labels), logits)


class CrossAttention(nn.Module):
    """Attention whose keys and values come from a source. No rotary: source and target count their own positions."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Hidden, source: Source, mask: SourceMask | None) -> Hidden:
        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

        q = heads(self.q_proj(x))  # (B, H, T, D)
        k, v = heads(self.k_proj(source)), heads(self.v_proj(source))  # (B, K, S, D)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != q.shape[1])
        return self.o_proj(out.transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """A block of the decoder: causal attention, attention to the source, MLP."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.cross_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.cross_attn = CrossAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        x: Hidden,
        rotation: Rotary,
        source: Source,
        source_mask: SourceMask | None,
        cache: KeyValueCache | None = None,
    ) -> Hidden:
        x = x + self.self_attn(self.input_layernorm(x), rotation, None, cache)  # no mask: causal
        x = x + self.cross_attn(self.cross_layernorm(x), source, source_mask)
        return x + self.mlp(self.post_attention_layernorm(x))


def shift_right(labels: Ids, start_id: int, pad_id: int) -> Ids:
    """What a decoder reads to predict `labels`: a start token, then the label before; -100 becomes padding."""
    before = F.pad(labels[:, :-1], (1, 0), value=start_id)
    return before.masked_fill(before == IGNORE_INDEX, pad_id)


class EncoderDecoder(nn.Module):
    """An encoder that sees all of a source, and a decoder that writes a target, seeing its own past and the source.

    One embedding serves both sides and the head, as in T5.

    Args:
        config: sizes; `num_hidden_layers` of each side.
        pad_id: padding, which also starts the target, as in T5.
    """

    def __init__(self, config: GPTConfig, pad_id: int = 0) -> None:
        super().__init__()
        self.config, self.pad_id = config, pad_id
        self.encoder = Decoder(config)  # a stack of blocks: its mask makes it an encoder
        self.layers = nn.ModuleList(CrossBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        initialise(self, config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.encoder.embed_tokens.weight

    def encode(
        self, input_ids: Int[Tensor, "batch source"], attention_mask: Int[Tensor, "batch source"] | None = None
    ) -> Source:
        """The source as the decoder reads it, (B, S, C)."""
        time = input_ids.shape[1]
        self.config.refuse_longer(time)
        if attention_mask is None:
            mask = torch.ones(1, 1, time, time, dtype=torch.bool, device=input_ids.device)
        else:
            mask = padding_mask(attention_mask, time, causal=False)
        return self.encoder(input_ids, torch.arange(time, device=input_ids.device)[None], mask, None)

    def decode(
        self,
        decoder_input_ids: Ids,
        source: Source,
        attention_mask: Int[Tensor, "batch source"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits for the target's token at each position, from those before it and the source.

        Args:
            decoder_input_ids: `shift_right` of the target, or as much of it as is known.
            source: from `encode`.
            attention_mask: of the source, 1 for tokens: nothing is read from its padding.
            cache: of the target's positions before, extended in place; then one token a call. The source's keys and
                values are computed in each call.

        Raises:
            ValueError: for more positions than the model has, and for several tokens behind a cache that holds some.
        """
        before, time = 0 if cache is None else len(cache), decoder_input_ids.shape[1]
        self.config.refuse_longer(before + time)
        if before and time > 1:
            raise ValueError(f"{time} tokens behind a cache of {before}; the decoder then takes one token a call")
        positions = torch.arange(before, before + time, device=source.device)[None]
        rotation = rotary(positions, self.config.head_dim, self.config.rope_theta)
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        x = self.encoder.embed_tokens(decoder_input_ids)
        for layer in self.layers:
            x = layer(x, rotation, source, mask, cache)
        return self.lm_head(self.norm(x))

    def forward(
        self,
        input_ids: Int[Tensor, "batch source"],
        labels: Ids,
        attention_mask: Int[Tensor, "batch source"] | None = None,
    ) -> Output:
        """Logits for each token of the target, and the mean loss over those that are not -100.

        Args:
            input_ids: the source.
            labels: the target, -100 for its padding; the decoder's input is made from it.
            attention_mask: of padded sources, 1 for tokens.
        """
        source = self.encode(input_ids, attention_mask)
        logits = self.decode(shift_right(labels, self.pad_id, self.pad_id), source, attention_mask)
        return Output(label_loss(logits, labels), logits)
