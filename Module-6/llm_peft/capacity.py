"""How much an adapter can hold: facts that have nothing in common, taught to a model, and counted in bits.

A fact is a key of two tokens and one token as its value, all drawn at random. Nothing about them can be guessed, so
what a model knows of them is in its trained numbers: log2 of the vocabulary's size for each. Allen-Zhu and Li 2024,
"Knowledge Capacity Scaling Laws" (arXiv:2404.05405), count the capacity of whole models in this way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from llm_core.optimizers import rate_factor
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Facts:
    """Keys, no two alike, and the token that follows each.

    Attributes:
        keys: (facts, 2).
        values: (facts,).
        vocabulary: tokens that a value may be.
    """

    keys: Int[Tensor, "facts 2"]
    values: Int[Tensor, " facts"]
    vocabulary: int

    @property
    def bits(self) -> float:
        """That one value takes for one who knows nothing."""
        return math.log2(self.vocabulary)


@dataclass(frozen=True)
class Learned:
    """What a model knows of some facts.

    Attributes:
        missing: bits a fact that are still to be told, the mean of -log2 of the value's probability.
        recalled: share of the facts whose value is the likeliest token.
        trained: how many numbers were trained.
    """

    missing: float
    recalled: float
    trained: int


def draw_facts(number: int, vocabulary: int, seed: int) -> Facts:
    """Facts at random.

    Args:
        number: of facts.
        vocabulary: tokens to draw from.
        seed: of the draw.

    Raises:
        ValueError: for more facts than there are keys, or none.
    """
    if not 1 <= number <= vocabulary**2:
        raise ValueError(f"number={number}: {vocabulary} tokens make {vocabulary**2:,} keys; ask for 1 to as many")
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randperm(vocabulary**2, generator=draw)[:number]
    values = torch.randint(vocabulary, (number,), generator=draw)
    return Facts(torch.stack([keys // vocabulary, keys % vocabulary], dim=1), values, vocabulary)


def value_logits(model: Any, facts: Facts) -> Float[Tensor, "facts vocab"]:
    """What a model of ours says behind each key."""
    return model.lm_head(model.features(facts.keys)[:, -1])


def learn_facts(model: nn.Module, facts: Facts, rate: float, steps: int) -> Learned:
    """Train what asks for gradients, in place, on all facts at each step.

    Args:
        model: a GPT of ours, with or without an adapter.
        facts: what to learn.
        rate: of AdamW at its highest; a twentieth of the steps warms up, and a cosine falls to 0.
        steps: how often each fact is seen.
    """
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(step, max(1, steps // 20), steps, 0.0)
        optimizer.zero_grad()
        F.cross_entropy(value_logits(model, facts), facts.values).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    with torch.no_grad():
        logits = value_logits(model, facts)
    missing = F.cross_entropy(logits, facts.values).item() / math.log(2)
    recalled = (logits.argmax(-1) == facts.values).double().mean().item()
    return Learned(missing, recalled, sum(each.numel() for each in trained))


def adapter_numbers(r: int, shapes: Iterable[tuple[int, int]]) -> int:
    """Numbers of an adapter on layers of these shapes: r (d_in + d_out) each. Hu et al. 2021, section 4.2."""
    return r * sum(outside + inside for outside, inside in shapes)


def tokens_at_capacity(
    r: int, shapes: Iterable[tuple[int, int]], bits_per_parameter: float, bits_per_token: float
) -> float:
    """Training tokens after which an adapter is full.

    Args:
        r: rank.
        shapes: of the layers that have an adapter, (outside, inside).
        bits_per_parameter: what a trained number holds, as found for a rank on a like training.
        bits_per_token: what there is to learn in a token, on average.

    Raises:
        ValueError: for bits that are not above 0.
    """
    for name, value in (("bits_per_parameter", bits_per_parameter), ("bits_per_token", bits_per_token)):
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0")
    return adapter_numbers(r, shapes) * bits_per_parameter / bits_per_token


def falls_behind(tokens: Sequence[int], behind: Sequence[float], threshold: float) -> float:
    """The number of tokens at which a curve first rises above a threshold, read off between two points.

    Args:
        tokens: rising.
        behind: bits that a rank is worse by than full fine-tuning, at each of them.
        threshold: what counts as behind.

    Raises:
        ValueError: when the curve begins above the threshold, or ends below it.
    """
    if behind[0] > threshold or behind[-1] <= threshold:
        raise ValueError(f"behind={list(behind)} does not cross {threshold}; take fewer tokens first, and more at last")
    place = next(index for index, value in enumerate(behind) if value > threshold)
    share = (threshold - behind[place - 1]) / (behind[place] - behind[place - 1])
    return tokens[place - 1] * (tokens[place] / tokens[place - 1]) ** share
