"""PPO: a policy that learns from its own answers, each token judged against what a model of values expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from llm_core.model import GPT
from llm_data.rows.collate import Batch
from llm_peft.prepare import Prepared
from llm_peft.settings import FineTune
from torch import Tensor, nn

from llm_align.models.scalar import ScalarModel
from llm_align.objectives.advantages import gae
from llm_align.objectives.logprobs import answer_mask
from llm_align.objectives.policy import value_sum
from llm_align.rollout.write import Rollout
from llm_align.training.policy import PolicyModule, PolicySettings, Reward

KL_AT = ("token", "end")
ALONE = PolicySettings(group=1, normaliser="tokens")  # an answer to a prompt, each token judged
MOST_CHANGE = 0.2  # of the coefficient, where it follows a target


@dataclass(frozen=True)
class ValueSettings:
    """What PPO has beside a policy.

    Attributes:
        gamma: discount of later rewards; answers are short, and 1 discounts nothing.
        lam: of `gae`: 0 trusts the values, 1 the rewards.
        value_coef: weight of the value's loss beside the policy's.
        value_clip: how far a value may move in the passes over a round before its loss has no gradient; None for no
            bound.
        kl_coef: what a nat of distance from the reference costs.
        kl_at: "token" pays at each token (Ouyang et al. 2022, section 3.4), "end" for the whole answer at its last.
        target_kl: the distance, in nats an answer, that `kl_coef` is steered to; None leaves it as it is. Ziegler et
            al. 2019, section 2.2 (arXiv:1909.08593).
        whiten: give the advantages of a round mean 0 and standard deviation 1.

    Raises:
        ValueError: for what cannot be.
    """

    gamma: float = 1.0
    lam: float = 0.95
    value_coef: float = 0.5
    value_clip: float | None = 0.2
    kl_coef: float = 0.05
    kl_at: str = "token"
    target_kl: float | None = None
    whiten: bool = True

    def __post_init__(self) -> None:
        if self.kl_at not in KL_AT:
            raise ValueError(f"kl_at={self.kl_at!r} is none of {', '.join(KL_AT)}")
        for name, allowed, holds in (
            ("gamma", "from 0 to 1", 0 <= self.gamma <= 1), ("lam", "from 0 to 1", 0 <= self.lam <= 1),
            ("value_coef", "0 or more", self.value_coef >= 0), ("kl_coef", "0 or more", self.kl_coef >= 0),
            ("value_clip", "above 0, or null", self.value_clip is None or self.value_clip > 0),
            ("target_kl", "above 0, or null", self.target_kl is None or self.target_kl > 0),
        ):  # fmt: skip
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)} must be {allowed}")
        if self.target_kl is not None and not self.kl_coef:
            raise ValueError("target_kl steers kl_coef, which is 0 and would stay so; raise it")


class ActorCritic(nn.Module):
    """A policy and its model of values, trained together; each has its own decoder."""

    def __init__(self, actor: GPT, critic: ScalarModel) -> None:
        super().__init__()
        self.config, self.actor, self.critic = actor.config, actor, critic


def token_rewards(rewards: Tensor, penalty: Tensor, mask: Tensor, kl_coef: float, kl_at: str = "token") -> Tensor:
    """What each token of an answer gets: its distance from the reference as a cost, and at the last one the reward.

    Args:
        rewards: (answers,).
        penalty: log p - log p of the reference, (answers, time - 1).
        mask: tokens of the answers, at least one each.
        kl_coef: cost of a nat.
        kl_at: "token", or "end" for all of it at the last token.
    """
    paid = -kl_coef * penalty.masked_fill(~mask, 0.0)
    last = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).max(dim=1).values[:, None]
    if kl_at == "end":
        paid = torch.zeros_like(paid).scatter(1, last, paid.sum(dim=1, keepdim=True))
    return paid.scatter_add(1, last, rewards[:, None].to(paid.dtype))


def whitened(values: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """Mean 0 and standard deviation 1 over the mask, 0 elsewhere.

    Args:
        values: (answers, time).
        mask: where they count.
        total: sums over all ranks.
    """
    count, mean = total(torch.stack([mask.sum(), values[mask].sum()])).unbind()
    centred = (values - mean / count).masked_fill(~mask, 0.0)
    squares = total(centred.pow(2).sum())
    return centred / ((squares / count).sqrt() + 1e-8)


class PPOModule(PolicyModule):
    """PPO (Schulman et al. 2017) as it is used on language models (Ouyang et al. 2022, section 3.4).

    Beside what a `PolicyModule` logs: `value_loss`, `explained` (share of the returns' variance that the values
    explain), and `kl_coef`.

    Args:
        model: from `prepare_policy`.
        settings: what it was prepared with.
        reward: what answers are worth.
        critic: from `prepare_scalar`, the model of values; the reward model's own weights are a usual beginning.
        policy: how it writes and learns; its normaliser must be "tokens".
        value: the rest.
        options: those of `LocalLoRA`.
    """

    needs_group = 1

    def __init__(
        self, model: Prepared, settings: FineTune, reward: Reward, critic: Prepared,
        policy: PolicySettings = ALONE, value: ValueSettings = ValueSettings(),
        **options: Any,
    ) -> None:  # fmt: skip
        if policy.normaliser != "tokens" or policy.ratio != "token":
            raise ValueError('PPO judges tokens; take normaliser="tokens" and ratio="token"')
        if policy.beta:
            raise ValueError("PPO takes the distance from the reference out of the rewards (kl_coef); leave beta at 0")
        if value.kl_coef and not policy.measure_kl:
            raise ValueError(
                "kl_coef is the price of a distance that measure_kl=False does not look at; set one of them"
            )
        if not isinstance(model.model, GPT) or not isinstance(critic.model, ScalarModel):
            raise TypeError("PPO takes a policy from prepare_policy and a critic from prepare_scalar")
        both = Prepared(ActorCritic(model.model, critic.model), model.tokenizer, model.base, model.base_name)
        super().__init__(both, settings, reward, policy, **options)
        self.value, self.kl_coef = value, value.kl_coef

    @property
    def actor(self) -> GPT:
        body: Any = self.model
        actor: GPT = body.actor
        return actor

    @property
    def critic(self) -> ScalarModel:
        """The model of values."""
        body: Any = self.model
        critic: ScalarModel = body.critic
        return critic

    def values(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What is expected before each token of an answer is written, 0 elsewhere."""
        found: Tensor = self.critic(ids)[:, :-1].masked_fill(~mask, 0.0)
        return found

    def learned(self, rollout: Rollout, rewards: Tensor) -> Batch:
        asked, mask = self.value, rollout.mask
        found = self.old_and_reference(rollout)
        penalty = found["old"] - found.get("reference", found["old"])
        values = self.values(rollout.ids, mask)
        paid = token_rewards(rewards, penalty, mask, self.kl_coef, asked.kl_at)
        advantages, returns = gae(paid, values, mask, asked.gamma, asked.lam)
        left, spread = (returns - values)[mask].var(unbiased=False), returns[mask].var(unbiased=False)
        self.meters.add("explained", float(1 - left / spread) if float(spread) > 0 else 0.0, 1)
        self.meters.add("kl_coef", self.kl_coef, 1)
        if asked.target_kl is not None:
            self._steer(float(penalty.masked_fill(~mask, 0.0).sum() / len(rewards)), asked.target_kl)
        if asked.whiten:
            advantages = whitened(advantages, mask, self._total)
        return {**found, "advantages": advantages, "returns": returns, "values": values}

    def _total(self, sums: Tensor) -> Tensor:
        trainer: Any = self._trainer
        found: Tensor = sums if trainer is None else trainer.strategy.reduce(sums, reduce_op="sum")
        return found

    def _steer(self, distance: float, target: float) -> None:
        """A step of the coefficient towards the target, equal on every rank."""
        trainer: Any = self.trainer
        distance = float(trainer.strategy.reduce(torch.tensor(distance, device=self.device), reduce_op="mean"))
        error = max(-MOST_CHANGE, min(MOST_CHANGE, distance / target - 1))
        self.kl_coef *= 1 + MOST_CHANGE * error

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum over a batch's tokens of both losses, and the number of tokens."""
        mask = answer_mask(batch["prompt_lengths"], batch["lengths"], batch["input_ids"].shape[1])
        found = self.objective(batch, mask)
        values = self.values(batch["input_ids"], mask)
        missed = value_sum(values, batch["values"], batch["returns"], mask, self.value.value_clip)
        self.meters.add("value_loss", float(missed.detach()), found.divisor)
        return found.total + self.value.value_coef * missed, torch.tensor(found.divisor, device=mask.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["kl_coef"] = self.kl_coef

    def objective_settings(self) -> dict[str, Any]:
        return {**super().objective_settings(), "value": asdict(self.value)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if not math.isfinite(kept := float(checkpoint.get("kl_coef", math.nan))):
            raise ValueError("the checkpoint has no kl_coef; take one of a run of PPO")
        self.kl_coef = kept
