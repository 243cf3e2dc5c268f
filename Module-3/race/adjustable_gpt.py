"""A small GPT of characters whose parts can be changed one at a time, its optimisers, its batches.

It is the race's own model, and not the package's `GPT`.

Parameters and numbers are for tiny Shakespeare by characters; the lesson that explains them is Module 3's second.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONTEXT = 64


@dataclass(frozen=True)
class Recipe:
    """Model, optimiser and schedule of one contender.

    Args:
        width, batch: of the residual stream; rows of 64 characters in a step.
        rotary: positions as rotations of queries and keys; else a learned vector for each.
        rms: RMSNorm; else LayerNorm without bias.
        mlp: "gelu" (4 times as wide), "swiglu" (three matrices of 8/3), or "relu2" (the square of ReLU, 4 times).
        previous: how many earlier characters add an embedding of their own to a position's.
        qk_norm: normalise each head's queries and keys.
        learning_rate: of AdamW; `floor` is the share of it that is left at the end.
        linear: straight down after the warm-up; else a cosine.
        epochs: rows without replacement, the text cut at a new offset each time; else random places.
        muon: learning rate of Muon on the blocks' matrices; 0 leaves them to AdamW.
        muon_decay: its weight decay.
        wide_init: first weights of standard deviation sqrt(2 / 5C) (GPT-NeoX's); else 0.02.
        compiled: through `torch.compile`.
    """

    width: int = 128
    batch: int = 12
    rotary: bool = True
    rms: bool = True
    mlp: str = "swiglu"
    previous: int = 0
    qk_norm: bool = False
    learning_rate: float = 1e-3
    floor: float = 0.1
    linear: bool = False
    epochs: bool = False
    muon: float = 0.0
    muon_decay: float = 0.0
    wide_init: bool = False
    compiled: bool = False


class Block(nn.Module):
    """Attention and MLP, the matrices of queries, keys and values in one."""

    def __init__(self, recipe: Recipe, heads: int = 4) -> None:
        super().__init__()
        width, self.recipe, self.heads = recipe.width, recipe, heads
        norm = RMSNorm if recipe.rms else LayerNorm
        self.before_attention, self.before_mlp = norm(width), norm(width)
        if recipe.qk_norm:
            self.query_norm, self.key_norm = norm(width // heads), norm(width // heads)
        inner = 32 * math.ceil(width / 12) if recipe.mlp == "swiglu" else 4 * width
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 2 * inner if recipe.mlp == "swiglu" else inner, bias=False)
        self.mlp_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.attention_in(self.before_attention(x)).view(batch, length, 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        if self.recipe.qk_norm:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        if self.recipe.rotary:
            left, right = torch.stack([queries, keys]).chunk(2, dim=-1)
            queries, keys = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.attention_out(out.transpose(1, 2).reshape(batch, length, width))
        inner = self.mlp_in(self.before_mlp(x))
        if self.recipe.mlp == "swiglu":
            gate, up = inner.chunk(2, dim=-1)
            inner = F.silu(gate) * up
        else:
            inner = F.relu(inner).square() if self.recipe.mlp == "relu2" else F.gelu(inner)
        return x + self.mlp_out(inner)


class RMSNorm(nn.RMSNorm):
    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)


class LayerNorm(nn.LayerNorm):
    def __init__(self, width: int) -> None:
        super().__init__(width, bias=False)


class AdjustableGPT(nn.Module):
    """The model; called with ids and targets it gives the mean loss."""

    def __init__(self, recipe: Recipe, vocab_size: int, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        width, self.recipe, self.vocab_size = recipe.width, recipe, vocab_size
        self.embedding = nn.Embedding(vocab_size, width)  # and the head's matrix
        self.places = None if recipe.rotary else nn.Embedding(CONTEXT, width)
        self.previous = nn.ModuleList(nn.Embedding(vocab_size + 1, width) for _ in range(recipe.previous))
        self.blocks = nn.ModuleList(Block(recipe, heads) for _ in range(layers))
        self.norm = RMSNorm(width) if recipe.rms else LayerNorm(width)
        half = torch.arange(0, width // heads, 2) / (width // heads)
        angles = torch.arange(CONTEXT)[:, None] / 10_000**half
        self.cos, self.sin = nn.Buffer(angles.cos()), nn.Buffer(angles.sin())
        small = math.sqrt(2 / (5 * width)) if recipe.wide_init else 0.02
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # what is added to the residual stream 2 x layers times begins smaller
                out = name.endswith("out.weight")
                nn.init.normal_(parameter, std=small / math.sqrt(2 * layers) if out else small)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.places is not None:
            x = x + self.places.weight[: ids.shape[1]]
        for back, table in enumerate(self.previous, start=1):  # the last row stands for "before the window"
            x = x + table(F.pad(ids[:, :-back], (back, 0), value=self.vocab_size))
        for block in self.blocks:
            x = block(x, self.cos[: ids.shape[1]], self.sin[: ids.shape[1]])
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# Three steps of the polynomials of Amsel et al. 2025, "The Polar Express" (arXiv:2505.16932), algorithm 1.
POLAR = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


def polar(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1; (number, rows, columns), rows <= columns."""
    x = matrices / (1.01 * matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in POLAR:
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


class Muon:
    """Momentum, then the polar factor of the update, a step of equal size in every direction (Jordan et al. 2024).

    As `torch.optim.Muon`, in float32, with matrices of one shape taken together: a third of its time on a CPU. A matrix
    that holds queries, keys and values is three, one of SwiGLU's gate and up is two.
    """

    def __init__(self, parameters: list[tuple[nn.Parameter, int]], decay: float, momentum: float = 0.95) -> None:
        self.parameters, self.decay, self.momentum, self.rate = parameters, decay, momentum, 0.0
        self.averages = [torch.zeros_like(parameter) for parameter, _ in parameters]

    @torch.no_grad()
    def step(self) -> None:
        groups: dict[tuple[int, ...], list[tuple[Tensor, Tensor, bool]]] = {}
        for (parameter, number), average in zip(self.parameters, self.averages, strict=True):
            assert parameter.grad is not None
            average.lerp_(parameter.grad, 1 - self.momentum)
            update = parameter.grad.lerp(average, self.momentum)
            for part, piece in zip(parameter.chunk(number), update.chunk(number), strict=True):
                tall = piece.shape[0] > piece.shape[1]
                groups.setdefault(tuple(sorted(piece.shape)), []).append((part, piece.T if tall else piece, tall))
            parameter.grad = None
        for pieces in groups.values():
            for (part, _, tall), x in zip(pieces, polar(torch.stack([piece for _, piece, _ in pieces])), strict=True):
                part.mul_(1 - self.rate * self.decay)
                part.add_(x.T if tall else x, alpha=-self.rate * max(1, part.shape[0] / part.shape[1]) ** 0.5)


class Batches:
    """Rows of characters with their targets."""

    def __init__(self, text: Tensor, recipe: Recipe, seed: int) -> None:
        self.text, self.recipe = text, recipe
        self.draw = torch.Generator().manual_seed(seed)
        self.waiting = torch.empty(0, dtype=torch.long)

    def __call__(self) -> tuple[Tensor, Tensor]:
        batch, last = self.recipe.batch, len(self.text) - CONTEXT
        if not self.recipe.epochs:
            starts = torch.randint(last, (batch,), generator=self.draw)
        else:
            while len(self.waiting) < batch:
                offset = int(torch.randint(CONTEXT, (1,), generator=self.draw))
                starts = torch.arange(offset, last, CONTEXT)
                self.waiting = torch.cat([self.waiting, starts[torch.randperm(len(starts), generator=self.draw)]])
            starts, self.waiting = self.waiting[:batch], self.waiting[batch:]
        rows = self.text[starts[:, None] + torch.arange(CONTEXT + 1)]
        return rows[:, :-1], rows[:, 1:]


class Training:
    """A recipe at work, step by step; `seconds` counts its steps alone."""

    def __init__(self, recipe: Recipe, text: Tensor, vocab_size: int, steps: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe, self.steps, self.done, self.seconds = recipe, steps, 0, 0.0
        self.model = AdjustableGPT(recipe, vocab_size)
        self.run = torch.compile(self.model) if recipe.compiled else self.model
        self.batches = Batches(text, recipe, seed)
        self.muon = None
        matrices = {}
        if recipe.muon:
            split = {"attention_in": 3, "mlp_in": 2 if recipe.mlp == "swiglu" else 1}
            for name, parameter in self.model.blocks.named_parameters():
                if parameter.ndim == 2:
                    matrices[parameter] = split.get(name.split(".")[1], 1)
            self.muon = Muon(list(matrices.items()), recipe.muon_decay)
        rest = [parameter for parameter in self.model.parameters() if parameter not in matrices]
        groups = [
            {"params": [parameter for parameter in rest if parameter.ndim == 2], "weight_decay": 0.1},
            {"params": [parameter for parameter in rest if parameter.ndim == 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)

    def share(self) -> float:
        """Share of the highest learning rate at this step: a warm-up of a twentieth, then down."""
        at = (self.done + 1) / self.steps
        if at < 0.05:
            return at / 0.05
        left = (1 - at) / 0.95
        fall = left if self.recipe.linear else 0.5 * (1 - math.cos(math.pi * left))
        return self.recipe.floor + (1 - self.recipe.floor) * fall

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.model(ids, targets)
        return loss

    def step(self) -> None:
        start = time.perf_counter()
        self.run(*self.batches()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = self.recipe.learning_rate * self.share()
        self.adam.step()
        if self.muon is not None:
            self.muon.rate = self.recipe.muon * self.share()
            self.muon.step()
        self.adam.zero_grad()
        self.done += 1
        self.seconds += time.perf_counter() - start


def parameters_of(model: nn.Module) -> int:
    """Number of parameters, each once."""
    return sum(parameter.numel() for parameter in model.parameters())
