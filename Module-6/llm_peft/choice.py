"""Which way of fine-tuning a budget affords: FLOPs of a step, the largest model, and whether two scores differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm_core.config import GPTConfig
from llm_core.costs.counts import flops_per_token, matmul_parameters

from llm_peft.budget import budget
from llm_peft.settings import FineTune


def step_flops(config: GPTConfig, time: int, r: int = 0) -> int:
    """FLOPs of the matrix products of a training step, for one token in a row of `time`.

    Full fine-tuning has three products for each weight: one forward, and two backward, for the gradient of the input
    and for that of the weight. A frozen weight has no gradient of its own, so two are left. The adapter's numbers have
    all three. Attention's products have no weight and stay as they are.

    Args:
        config: sizes.
        time: T.
        r: rank of an adapter on all linear layers but the head; 0 is full fine-tuning.
    """
    full = flops_per_token(config, time)
    if not r:
        return full
    C, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    widths = 6 * C + 2 * keys + 3 * (C + config.intermediate_size)  # in and out of a block's seven layers
    adapter = 6 * r * config.num_hidden_layers * widths
    # Nothing is trained below the first block: its queries, keys and values pass no gradient on.
    first = 2 * C * (C + 2 * keys) + 2 * 3 * r * C
    return full - 2 * matmul_parameters(config) + adapter - first


def largest_that_fits(
    configs: Mapping[str, Any], settings: FineTune, memory: float, batch: int, time: int, loss_chunk: int = 0
) -> str | None:
    """The model with the most parameters whose fine-tuning fits.

    Args:
        configs: of transformers, by name.
        settings: method, adapter, width, checkpointing.
        memory: bytes that there are.
        batch, time, loss_chunk: as for `budget`.

    Returns:
        Its name; None when none fits.
    """
    found = {name: budget(config, settings, batch, time, loss_chunk) for name, config in configs.items()}
    fitting = [name for name, each in found.items() if each.bytes <= memory]
    return max(fitting, key=lambda name: found[name].parameters, default=None)


def score_error(score: float, questions: int) -> float:
    """Standard error of a share of right answers, when each question is right or wrong by itself.

    Raises:
        ValueError: for a score that is no share, or fewer than one question.
    """
    if not 0 <= score <= 1 or questions < 1:
        raise ValueError(f"score={score} of {questions} questions: give a share from 0 to 1, and at least 1 question")
    return math.sqrt(score * (1 - score) / questions)


def score_difference(one: float, other: float, questions: int) -> tuple[float, float]:
    """How much better the second score is, and the standard error of that, when only the two shares are known.

    The same questions were asked twice. Those that both get right or wrong cancel out of the difference, so with the
    answers at hand the error is smaller; without them this one, of two independent tests, is the safe one.
    """
    return other - one, math.hypot(score_error(one, questions), score_error(other, questions))
