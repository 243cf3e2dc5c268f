"""Module 8's helper package: a model moved towards answers that are preferred or checked.

`from llm_align import DPOModule, GRPOModule, prepare_policy`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_align.data.pairs import PairsDataModule
    from llm_align.data.prompts import PromptsDataModule
    from llm_align.models.load import prepare_policy, prepare_scalar
    from llm_align.objectives.advantages import gae, group_advantages, leave_one_out
    from llm_align.objectives.policy import policy_loss
    from llm_align.objectives.preference import bradley_terry, dpo
    from llm_align.rollout.reward import FunctionReward, ModelReward
    from llm_align.rollout.write import Writer
    from llm_align.training.pairs import DPOModule, Preference, RewardModule
    from llm_align.training.policy import GRPOModule, PolicySettings
    from llm_align.training.ppo import PPOModule, ValueSettings

__all__ = [
    "DPOModule", "FunctionReward", "GRPOModule", "ModelReward", "PPOModule", "PairsDataModule",
    "PolicySettings", "Preference", "PromptsDataModule", "RewardModule", "ValueSettings", "Writer",
    "bradley_terry", "dpo", "gae", "group_advantages", "leave_one_out", "policy_loss", "prepare_policy",
    "prepare_scalar",
]  # fmt: skip

export(__name__, {
    "DPOModule": "training.pairs", "FunctionReward": "rollout.reward", "GRPOModule": "training.policy",
    "ModelReward": "rollout.reward", "PPOModule": "training.ppo", "PairsDataModule": "data.pairs",
    "PolicySettings": "training.policy", "Preference": "training.pairs", "PromptsDataModule": "data.prompts",
    "RewardModule": "training.pairs", "ValueSettings": "training.ppo", "Writer": "rollout.write",
    "bradley_terry": "objectives.preference", "dpo": "objectives.preference", "gae": "objectives.advantages",
    "group_advantages": "objectives.advantages", "leave_one_out": "objectives.advantages", "policy_loss":
    "objectives.policy", "prepare_policy": "models.load", "prepare_scalar": "models.load",
})  # fmt: skip
