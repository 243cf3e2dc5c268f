"""How much better an answer, or a token, was than could be expected."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_align.objectives.logprobs import PerAnswer

EPSILON = 1e-4  # beside the standard deviation of a group, as trl has it


def gae(
    rewards: Float[Tensor, "batch time"], values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"],
    gamma: float = 1.0, lam: float = 0.95,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:  # fmt: skip
    """Generalised advantage estimation, and the returns that the value head learns: advantage + value.

    Schulman et al. 2016, equation 16 (arXiv:1506.02438): A_t = sum over l of (gamma lam)^l d_{t+l}, with
    d_t = r_t + gamma V_{t+1} - V_t. Behind an answer's last token there is no value.

    Args:
        rewards: of each token; zeros but for what comes at the last one, and a penalty a token.
        values: expected at each token, before it is written.
        mask: tokens of the answer, without gaps.
        gamma: discount.
        lam: 0 trusts the values, 1 the rewards.
    """
    after = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], dim=1)
    goes_on = torch.cat([mask[:, 1:], mask.new_zeros(len(mask), 1)], dim=1)
    steps = rewards + gamma * after * goes_on - values
    found, running = torch.zeros_like(rewards), rewards.new_zeros(len(rewards))
    for place in reversed(range(rewards.shape[1])):
        running = steps[:, place] + gamma * lam * running * goes_on[:, place]
        found[:, place] = running
    found = found.masked_fill(~mask, 0.0)
    return found, (found + values).masked_fill(~mask, 0.0)


def group_advantages(rewards: PerAnswer, group: int, scale: str = "group") -> PerAnswer:
    """Rewards less their group's mean: the answers to one prompt stand for what could be expected.

    Args:
        rewards: the answers to a prompt beside each other.
        group: answers to each prompt.
        scale: "group" divides by the group's standard deviation (Shao et al. 2024, GRPO, section 4.1.1,
            arXiv:2402.03300), "batch" by that of all, "none" by nothing (Liu et al. 2025, Dr. GRPO, arXiv:2503.20783:
            a division makes groups count that hardly differ).

    Raises:
        ValueError: for rewards that are no groups, and for a word that is none of these.
    """
    rows = _groups(rewards, group)
    centred = rows - rows.mean(dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (rows.std(dim=1, keepdim=True) + EPSILON)
    elif scale == "batch":
        centred = centred / (rewards.std() + EPSILON)
    elif scale != "none":
        raise ValueError(f"scale={scale!r} is none of group, batch, none")
    return centred.flatten()


def leave_one_out(rewards: PerAnswer, group: int) -> PerAnswer:
    """Rewards less the mean of the *other* answers to the prompt: a baseline that does not depend on the answer itself.

    Ahmadian et al. 2024, RLOO, section 2.2 (arXiv:2402.14740). It is group / (group - 1) times the centred reward.
    """
    rows = _groups(rewards, group)
    others = (rows.sum(dim=1, keepdim=True) - rows) / (group - 1)
    return (rows - others).flatten()


def _groups(rewards: PerAnswer, group: int) -> Float[Tensor, "prompts group"]:
    if group < 2 or len(rewards) == 0 or len(rewards) % group:
        raise ValueError(f"{len(rewards)} rewards are no groups of {group}; a group has at least 2 answers")
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError("a reward is not finite; mend the function that gave it")
    return rewards.view(-1, group)
