"""The modules from a configuration file: a base model by name, a reward by name."""

from __future__ import annotations

import os
from typing import Any

from llm_peft.prepare import Prepared
from llm_peft.settings import FineTune

from llm_align.models.load import prepare_policy, prepare_scalar
from llm_align.rollout.reward import FunctionReward, ModelReward
from llm_align.training.pairs import DPOModule, Preference, RewardModule
from llm_align.training.policy import GRPOModule, PolicySettings, Reward
from llm_align.training.ppo import ALONE, PPOModule, ValueSettings

MODEL = "model:"  # before the folder of a reward model
PREFERENCE, POLICY, VALUE = Preference(), PolicySettings(), ValueSettings()


def reward_of(spec: str, seconds: float, prepared: Prepared) -> Reward:
    """The reward that a configuration names.

    Raises:
        ValueError: when there is none.
    """
    if spec.startswith(MODEL):
        return ModelReward(os.path.expanduser(spec.removeprefix(MODEL)), prepared.tokenizer)
    return FunctionReward(spec, seconds)


class ConfiguredDPO(DPOModule):
    """`DPOModule` from a configuration file.

    Args:
        base: "smollm2-135m", a run of babygpt, a folder of transformers, or an id of the hub.
        fine_tune: method, adapter, width.
        preference: the objective.
    """

    def __init__(
        self, base: str, fine_tune: FineTune, preference: Preference = PREFERENCE, **options: Any
    ) -> None:  # fmt: skip
        super().__init__(prepare_policy(base, fine_tune), fine_tune, preference, **options)


class ConfiguredReward(RewardModule):
    """`RewardModule` from a configuration file.

    Args:
        base: as for dpo; also the folder of an earlier reward model.
        fine_tune: method, adapter, width.
        center: weight of what holds the rewards around 0.
    """

    def __init__(self, base: str, fine_tune: FineTune, center: float = 0.0, **options: Any) -> None:
        super().__init__(prepare_scalar(base, fine_tune), fine_tune, center, **options)


class ConfiguredGRPO(GRPOModule):
    """`GRPOModule` from a configuration file.

    Args:
        base: as for dpo.
        reward: a task's name, package.module:function, file.py:function, or model:FOLDER of a reward model.
        fine_tune: method, adapter, width.
        policy: how it writes and learns.
        reward_seconds: that one call of a reward function may take.
    """

    def __init__(
        self, base: str, reward: str, fine_tune: FineTune, policy: PolicySettings = POLICY,
        reward_seconds: float = 1.0, **options: Any,
    ) -> None:  # fmt: skip
        prepared = prepare_policy(base, fine_tune)
        super().__init__(prepared, fine_tune, reward_of(reward, reward_seconds, prepared), policy, **options)


class ConfiguredPPO(PPOModule):
    """`PPOModule` from a configuration file.

    Args:
        base: as for dpo.
        reward: as for grpo.
        fine_tune: method, adapter, width; of the policy and of the model of values.
        policy: how it writes and learns.
        value: what PPO has beside a policy.
        critic: what the model of values begins as: a base model, or the folder of a reward model; null takes `base`.
        reward_seconds: that one call of a reward function may take.
    """

    def __init__(
        self, base: str, reward: str, fine_tune: FineTune,
        policy: PolicySettings = ALONE, value: ValueSettings = VALUE,
        critic: str | None = None, reward_seconds: float = 1.0, **options: Any,
    ) -> None:  # fmt: skip
        prepared = prepare_policy(base, fine_tune)
        values = prepare_scalar(critic or base, fine_tune)
        super().__init__(
            prepared, fine_tune, reward_of(reward, reward_seconds, prepared), values, policy, value, **options
        )
