"""What is learned from pairs of answers, one preferred to the other.

Bradley and Terry 1952; Ouyang et al. 2022, equation 1 (arXiv:2203.02155); Rafailov et al. 2023 (arXiv:2305.18290).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from llm_align.objectives.logprobs import PerAnswer


def bradley_terry(chosen: PerAnswer, rejected: PerAnswer, center: float = 0.0) -> Float[Tensor, ""]:
    """-log sigmoid(r_chosen - r_rejected), the mean over pairs.

    Args:
        chosen: rewards of the preferred answers.
        rejected: of the others.
        center: weight of (r_chosen + r_rejected)², which holds the rewards around 0: the first term knows differences
            only. Eisenstein et al. 2023 (arXiv:2312.09244).
    """
    return -F.logsigmoid(chosen - rejected).mean() + center * (chosen + rejected).pow(2).mean()


class DPO(NamedTuple):
    """The loss, and what is watched: rewards are beta (log p - log p of the reference)."""

    loss: Float[Tensor, ""]
    chosen_rewards: PerAnswer
    rejected_rewards: PerAnswer


def dpo(
    chosen: PerAnswer, rejected: PerAnswer, reference_chosen: PerAnswer, reference_rejected: PerAnswer,
    beta: float = 0.1, kind: str = "sigmoid", label_smoothing: float = 0.0,
    lengths: tuple[PerAnswer, PerAnswer] | None = None,
) -> DPO:  # fmt: skip
    """Direct preference optimisation: the reward model is the policy's own log-ratio to the reference.

    Args:
        chosen, rejected: log-probabilities of whole answers under the policy.
        reference_chosen, reference_rejected: the same under the reference, without gradients.
        beta: how dear it is to leave the reference.
        kind: "sigmoid" (Rafailov et al. 2023, equation 7), "hinge" (Zhao et al. 2023, SLiC), "ipo" (Azar et al. 2023,
            equation 17, with log-ratios a token, as its authors meant it), or "robust" (Chowdhury et al. 2024: labels
            that are flipped with probability `label_smoothing`, without bias).
        label_smoothing: of "robust"; below 0.5.
        lengths: tokens of the chosen and the rejected answers, which "ipo" divides by.

    Raises:
        ValueError: for another kind, for numbers that cannot be, and for "ipo" without lengths.
    """
    if not beta > 0 or not 0 <= label_smoothing < 0.5:
        raise ValueError(f"beta={beta} must be above 0, and label_smoothing={label_smoothing} from 0 to below 0.5")
    if label_smoothing and kind != "robust":
        raise ValueError(f'label_smoothing is of kind="robust", not of {kind!r}')
    ratio_chosen, ratio_rejected = chosen - reference_chosen, rejected - reference_rejected
    margin = beta * (ratio_chosen - ratio_rejected)
    if kind == "sigmoid":
        losses = -F.logsigmoid(margin)
    elif kind == "hinge":
        losses = torch.relu(1 - margin)
    elif kind == "robust":
        clean, flipped = -F.logsigmoid(margin), -F.logsigmoid(-margin)
        losses = ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    elif kind == "ipo":
        if lengths is None:
            raise ValueError('kind="ipo" needs the lengths of the answers')
        a_token = ratio_chosen / lengths[0].clamp(min=1) - ratio_rejected / lengths[1].clamp(min=1)
        losses = (a_token - 1 / (2 * beta)).pow(2)
    else:
        raise ValueError(f"kind={kind!r} is none of sigmoid, hinge, ipo, robust")
    return DPO(losses.mean(), beta * ratio_chosen.detach(), beta * ratio_rejected.detach())
