"""`align eval`: held-out prompts answered and scored, with the interval of the score; or two models compared."""

from __future__ import annotations

import statistics

import numpy as np
from llm_core.generate import Sampling
from llm_peft.settings import FineTune
from torch import Tensor

from llm_align.command.configured import reward_of
from llm_align.data.records import read_prompts
from llm_align.evaluate.intervals import paired_bootstrap, wilson, win_rate
from llm_align.models.load import prepare_policy
from llm_align.rollout.write import Rollout, Writer


def answers(model: str, prompts: str, reward: str, sampling: Sampling) -> tuple[Rollout, Tensor]:
    """An answer to each prompt of a file, and what it is worth.

    Raises:
        ValueError: when there is no such model or reward, or a prompt leaves no room for an answer.
    """
    prepared = prepare_policy(model, FineTune(method="full", library="ours"))
    asked = read_prompts(prompts, prepared.tokenizer)
    rollout = Writer(prepared.model, prepared.tokenizer, sampling, 1).write(asked)  # type: ignore[arg-type]
    return rollout, reward_of(reward, 1.0, prepared)(rollout)


def report(
    model: str, prompts: str, reward: str, against: str | None, max_new_tokens: int, temperature: float, seed: int
) -> str:  # fmt: skip
    """The lines that the command prints."""
    sampling = Sampling(max_new_tokens, temperature, seed=seed)
    found = [answers(name, prompts, reward, sampling) for name in (model, *([against] if against else []))]
    lines = []
    for name, (rollout, scores) in zip((model, against), found, strict=False):
        values, number = scores.numpy(), len(scores)
        draws = np.random.default_rng(seed).choice(values, (10_000, number)).mean(axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        ended, length = int(rollout.finished.sum()), statistics.fmean(rollout.tokens.tolist())
        lines.append(
            f"{name}: reward {values.mean():.3f} [{low:.3f}, {high:.3f}], finished {wilson(ended, number)}, "
            f"{length:.1f} tokens an answer, {number} prompts"
        )
    if against:
        ours, theirs = (scores.tolist() for _, scores in found)
        wins, losses = (sum(a > b for a, b in zip(*sides, strict=True)) for sides in ((ours, theirs), (theirs, ours)))
        lines.append(
            f"won against {against}: {win_rate(wins, len(ours) - wins - losses, losses)} (a tie is half a win)"
        )
        lines.append(f"difference of the rewards: {paired_bootstrap(theirs, ours)}")
    return "\n".join(lines)
