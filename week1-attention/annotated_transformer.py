"""The transformer of 2017, whole: layers, masks, loss, learning-rate schedule and decoding.

Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762). `python annotated_transformer.py` proves
the parts equal to PyTorch's. Masks are boolean and True means "may attend", as in `scaled_dot_product_attention`; in
`nn.Transformer` it is the other way round. Projections have biases; dropout is where section 5.4 puts it.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from course import check

Tokens = Int[Tensor, "batch time"]
Hidden = Float[Tensor, "batch time d_model"]
Memory = Float[Tensor, "batch source_time d_model"]  # the encoder's output
Logits = Float[Tensor, "batch time vocab_size"]
Mask = Bool[Tensor, "... _ _"]  # (batch, heads, queries, keys), or what broadcasts to it


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer, by default the paper's base model (table 3); ValueError for impossible ones."""

    vocab_size: int
    d_model: int = 512
    num_heads: int = 8
    num_layers: int = 6  # of the encoder, and again of the decoder
    d_ff: int = 2048
    dropout: float = 0.1
    max_len: int = 512  # longest sequence, in tokens
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_heads", "num_layers", "d_ff", "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1; set a positive {name}")
        if self.d_model % (step := math.lcm(2, self.num_heads)):
            fix = f"num_heads={self.num_heads}; set d_model={step * math.ceil(self.d_model / step)}"
            raise ValueError(f"d_model={self.d_model}: must be a multiple of 2 and of {fix}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be in [0, 1); set the paper's 0.1, or 0 for none")
        if len({*(ids := (self.pad_id, self.bos_id, self.eos_id))} & {*range(self.vocab_size)}) < 3:
            fix = f"must be three different ids in [0, vocab_size={self.vocab_size}); set 0, 1, 2"
            raise ValueError(f"pad_id, bos_id, eos_id = {ids}: {fix}")


def padding_mask(tokens: Tokens, pad_id: int) -> Bool[Tensor, "batch 1 1 time"]:
    """True where a key is a real token. The axes of size 1 stand for the heads and the queries."""
    return (tokens != pad_id)[:, None, None, :]


def causal_mask(time: int, device: torch.device | str | None = None) -> Bool[Tensor, "time time"]:
    """True on and below the diagonal: query t (a row) may attend to keys 0..t (section 3.2.3)."""
    return torch.ones(time, time, dtype=torch.bool, device=device).tril()


def attention(
    query: Float[Tensor, "*batch_heads queries head_dim"],
    key: Float[Tensor, "*batch_heads keys head_dim"],
    value: Float[Tensor, "*batch_heads keys value_dim"],
    mask: Bool[Tensor, "*#batch_heads #queries #keys"] | None = None,
) -> tuple[Float[Tensor, "*batch_heads queries value_dim"], Float[Tensor, "*batch_heads queries keys"]]:
    """Scaled dot-product attention, equation 1: output and weights. A query that may attend to nothing gets zeros
    (weights, output, gradient), as in torch 2.13's `F.scaled_dot_product_attention`."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # (*batch_heads, queries, keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(dim=-1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)  # the softmax of a row of -inf is NaN
    return weights @ value, weights


class MultiHeadAttention(nn.Module):
    """Multi-head attention, section 3.2.2, without dropout. `weights` (batch, heads, queries, keys): the last ones."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d_model, d_model) for _ in range(4))
        self.weights: Tensor | None = None

    def forward(self, query: Hidden, key: Memory, value: Memory, mask: Mask | None = None) -> Hidden:
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)  # (batch, time, d_model)
        heads, weights = attention(self.split_heads(q), self.split_heads(k), self.split_heads(v), mask)
        self.weights = weights.detach()
        return self.out_proj(heads.transpose(1, 2).flatten(2))  # (batch, queries, heads * head_dim)

    def split_heads(self, x: Hidden) -> Float[Tensor, "batch heads time head_dim"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # via (batch, time, heads, head_dim)


class PositionalEncoding(nn.Module):
    """Adds sine (even channels) and cosine (odd channels) of the position, section 3.5: a table that is not saved."""

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        frequency = 10000.0 ** (-torch.arange(0, d_model, 2) / d_model)  # (d_model / 2,), radians a position
        angle = torch.arange(max_len)[:, None] * frequency  # (max_len, d_model / 2)
        table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (max_len, d_model)
        self.table = nn.Buffer(table, persistent=False)

    def forward(self, x: Hidden) -> Hidden:
        if x.size(1) > len(self.table):
            raise ValueError(f"{x.size(1)} tokens: at most max_len={len(self.table)} fit; raise max_len")
        return x + self.table[: x.size(1)]


class FeedForward(nn.Module):
    """Position-wise feed-forward network, equation 2: the same two linear maps at every position."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x: Hidden) -> Hidden:
        return self.linear2(self.linear1(x).relu())


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each as norm(x + dropout(sublayer(x))): post-norm, section 3.1."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(config.d_model, config.num_heads)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.norm1, self.norm2 = (nn.LayerNorm(config.d_model) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Hidden, mask: Mask | None) -> Hidden:
        x = self.norm1(x + self.dropout(self.self_attn(x, x, x, mask)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder's output, feed-forward; each post-norm, section 3.1."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(config.d_model, config.num_heads)
        self.cross_attn = MultiHeadAttention(config.d_model, config.num_heads)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.d_model) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Hidden, memory: Memory, mask: Mask | None, memory_mask: Mask | None) -> Hidden:
        x = self.norm1(x + self.dropout(self.self_attn(x, x, x, mask)))
        x = self.norm2(x + self.dropout(self.cross_attn(x, memory, memory, memory_mask)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class Transformer(nn.Module):
    """Encoder and decoder. One matrix is the output layer and, times sqrt(d_model), both embeddings (section 3.4)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = PositionalEncoding(config.max_len, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        for weight in (p for p in self.parameters() if p.dim() > 1):
            nn.init.xavier_uniform_(weight)
        nn.init.normal_(self.embedding.weight, std=0.02)  # logits near 0: the first loss is ln(vocab_size)

    def forward(self, source: Int[Tensor, "batch source_time"], target: Tokens) -> Logits:
        return self.decode(target, *self.encode(source))

    def encode(self, source: Tokens) -> tuple[Hidden, Bool[Tensor, "batch 1 1 time"]]:
        x, mask = self.embed(source), padding_mask(source, self.config.pad_id)
        for layer in self.encoder:
            x = layer(x, mask)
        return x, mask

    def decode(self, target: Tokens, memory: Memory, memory_mask: Mask) -> Logits:
        x, mask = self.embed(target), self.target_mask(target)
        for layer in self.decoder:
            x = layer(x, memory, mask, memory_mask)
        return x @ self.embedding.weight.T

    def target_mask(self, target: Tokens) -> Bool[Tensor, "batch 1 time time"]:
        return padding_mask(target, self.config.pad_id) & causal_mask(target.size(1), target.device)

    def embed(self, tokens: Tokens) -> Hidden:
        return self.dropout(self.positions(self.embedding(tokens) * math.sqrt(self.config.d_model)))


def label_smoothing_loss(logits: Logits, target: Tokens, pad_id: int, smoothing: float) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) of real tokens to smoothed targets, section 5.4; mirrors `F.cross_entropy`'s own."""
    log_probs = logits.log_softmax(dim=-1)[target != pad_id]  # (tokens, vocab_size)
    on_target = log_probs.gather(-1, target[target != pad_id][:, None])  # (tokens, 1)
    return -(1 - smoothing) * on_target.mean() - smoothing * log_probs.mean()


def noam_rate(step: int, d_model: int, warmup_steps: int) -> float:
    """Learning rate of optimiser step 1, 2, ...: equation 3. It peaks at `warmup_steps`."""
    if min(step, warmup_steps) < 1:
        raise ValueError(f"step={step}, warmup_steps={warmup_steps}: both count from 1; pass step + 1")
    return d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)


def next_log_probs(model: Transformer, target: Tokens, memory: Memory, memory_mask: Mask) -> Tensor:
    """Log-probabilities (batch, vocab_size) of the token after `target`; -inf for padding and `bos_id`."""
    if model.training:
        raise ValueError("training mode: dropout would make decoding random; call model.eval() first")
    log_probs = model.decode(target, memory, memory_mask)[:, -1].log_softmax(dim=-1)
    log_probs[:, [model.config.pad_id, model.config.bos_id]] = -math.inf
    return log_probs


@torch.no_grad()
def greedy_decode(model: Transformer, source: Tokens, max_len: int) -> Int[Tensor, "batch out"]:
    """The likeliest token, again and again, up to `eos_id` or `max_len` tokens; padded behind `eos_id`."""
    config, (memory, mask) = model.config, model.encode(source)
    output = torch.full_like(source[:, :1], config.bos_id)
    while output.size(1) <= max_len and not (ended := (output == config.eos_id).any(dim=1)).all():
        token = next_log_probs(model, output, memory, mask).argmax(dim=-1).masked_fill(ended, config.pad_id)
        output = torch.cat([output, token[:, None]], dim=1)
    return output[:, 1:]


@torch.no_grad()
def beam_decode(
    model: Transformer, source: Int[Tensor, "1 time"], max_len: int, beam_size: int = 4, alpha: float = 0.6
) -> tuple[Int[Tensor, " out"], float]:
    """The best sequence that beam search finds, and its score: log-probability / ((5 + length) / 6) ** alpha,
    where length counts `eos_id` (section 6.1; Wu et al. 2016, arXiv:1609.08144, equation 14). Ended sequences
    keep their place among the `beam_size` best; `beam_size=1` is greedy decoding."""
    config, (memory, mask) = model.config, model.encode(source)
    beams, log_probs = torch.full_like(source[:, :1], config.bos_id), memory.new_zeros(1)
    while beams.size(1) <= max_len and not (ended := (beams == config.eos_id).any(dim=1)).all():
        step = next_log_probs(model, beams, memory.expand(len(beams), -1, -1), mask)
        step[ended] = -math.inf
        step[ended, config.pad_id] = 0.0  # an ended sequence has one continuation: itself
        total = log_probs[:, None] + step  # (beams, vocab_size)
        length = (beams != config.pad_id).sum(dim=1) - ended.int()  # with the new token, without `bos_id`
        scores = (total / ((5 + length[:, None]) / 6) ** alpha).flatten()
        best, place = scores.topk(min(beam_size, int(scores.isfinite().sum())))
        beams = torch.cat([beams[place // config.vocab_size], place[:, None] % config.vocab_size], dim=1)
        log_probs = total.flatten()[place]
    return beams[0, 1:], best[0].item()


def our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an `nn.Transformer` or `nn.MultiheadAttention` under our names: views, to load or to copy into."""
    views: dict[str, Tensor] = {}
    for name, value in tensors.items():
        name = name.replace(".layers.", ".").replace("multihead_attn", "cross_attn")
        name = name.replace("linear", "feed_forward.linear")
        parts = [name.replace("in_proj_", f"{p}_proj.") for p in "qkv"] if "in_proj_" in name else [name]
        views.update(zip(parts, value.chunk(len(parts)), strict=True))  # (3 d_model, ..) to (d_model, ..)
    return views


def torch_twin(model: Transformer) -> nn.Transformer:
    """An `nn.Transformer` with the weights of `model` (no embedding) and no LayerNorm behind its stacks."""
    c = model.config
    twin = nn.Transformer(c.d_model, c.num_heads, c.num_layers, c.num_layers, c.d_ff, 0.0, batch_first=True)
    twin.encoder.norm = twin.decoder.norm = None
    for name, view in our_names(twin.state_dict()).items():
        view.copy_(model.state_dict()[name])
    return twin.train(model.training)


def main() -> None:
    """Check the basics; each line printed is a claim that held."""
    torch.manual_seed(0)
    d, f, near = 32, 64, functools.partial(check.equal, atol=1e-5)  # float32, sums in another order
    model = Transformer(TransformerConfig(vocab_size=11, d_model=d, num_heads=4, num_layers=2, d_ff=f)).eval()
    source, target = torch.tensor([[5, 6, 7, 2], [8, 2, 0, 0]]), torch.tensor([[1, 5, 6, 7], [1, 8, 0, 0]])
    x, mask, heads = model.embed(target), model.target_mask(target), MultiHeadAttention(d, 4)
    theirs = nn.functional.scaled_dot_product_attention(q := heads.split_heads(x), q, q, mask)
    near("attention = F.scaled_dot_product_attention", attention(q, q, q, mask)[0], theirs)
    heads.load_state_dict(our_names((mha := nn.MultiheadAttention(d, 4, batch_first=True)).state_dict()))
    theirs = mha(x, x, x, attn_mask=~mask.expand(2, 4, 4, 4).flatten(0, 1))[0]  # (batch * heads, ...)
    near("MultiHeadAttention = nn.MultiheadAttention", heads(x, x, x, mask), theirs)
    masks = {"src_key_padding_mask": source == 0, "memory_key_padding_mask": source == 0}
    masks |= {"tgt_key_padding_mask": target == 0, "tgt_mask": ~causal_mask(4)}
    theirs = torch_twin(model)(model.embed(source), x, **masks)
    near("Transformer = nn.Transformer", logits := model(source, target), theirs @ model.embedding.weight.T)
    theirs = nn.functional.cross_entropy(logits.transpose(1, 2), target, ignore_index=0, label_smoothing=0.1)
    near("label_smoothing_loss = F.cross_entropy", label_smoothing_loss(logits, target, 0, 0.1), theirs)
    changed = model(source, target.index_fill(1, torch.tensor(3), 9))
    near("no position sees a later one", changed[:, :3], logits[:, :3])
    by_formula = 11 * d + 2 * (3 * 4 * (d * d + d) + 2 * (2 * d * f + f + d) + 5 * 2 * d)
    check.equal("parameters by formula", by_formula, sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
