"""Learning from pairs: a policy by DPO, or a model that gives rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from llm_peft.prepare import Prepared
from llm_peft.settings import FineTune
from torch import Tensor

from llm_align.models.policy import Reference, answer_logprobs
from llm_align.models.scalar import ScalarModel, read_last
from llm_align.objectives.logprobs import answer_mask, over_answers
from llm_align.objectives.preference import bradley_terry, dpo
from llm_align.training.kept import ObjectiveModule
from llm_align.training.meters import Meters


@dataclass(frozen=True)
class Preference:
    """Settings of DPO; see `llm_align.objectives.preference.dpo`.

    Attributes:
        beta: how dear it is to leave the reference.
        kind: "sigmoid", "hinge", "ipo" or "robust".
        label_smoothing: of "robust": the share of pairs whose labels are believed to be flipped.
    """

    beta: float = 0.1
    kind: str = "sigmoid"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        one = torch.zeros(1)
        dpo(
            one, one, one, one, self.beta, self.kind, self.label_smoothing, (one + 1, one + 1)
        )  # refuses what cannot be


class PairsModule(ObjectiveModule):
    """What both have in common: a loss that is a mean over pairs, and what is watched beside it.

    Logged as `train_...` and `val_...`: the loss, `accuracy` (share of pairs that are ranked as they were labelled),
    `margin`, and what a module adds.
    """

    def __init__(self, model: Prepared, settings: FineTune, **options: Any) -> None:
        super().__init__(model, settings, **options)
        self.meters = Meters()
        self.history: list[dict[str, float]] = []  # what was logged of training, a line each

    # -- a step -------------------------------------------------------------------------------------------------------

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum of the losses of a batch's pairs, and their number."""
        ids, prompts, lengths = batch["input_ids"], batch["prompt_lengths"], batch["lengths"]
        pairs = len(ids) // 2
        there = lengths[:pairs] > prompts[:pairs]  # a rank that was left without a pair has rows without an answer
        if not bool(there.all()):
            return self.pair_losses(ids, prompts, lengths) * 0.0, there.sum()
        return self.pair_losses(ids, prompts, lengths) * pairs, there.sum()

    def pair_losses(self, ids: Tensor, prompts: Tensor, lengths: Tensor) -> Tensor:
        """The mean loss over pairs; the preferred answers are the first half of the rows."""
        raise NotImplementedError

    def watch(self, chosen: Tensor, rejected: Tensor) -> None:
        """Note how two rewards compare."""
        self.meters.add_mean("accuracy", (chosen > rejected).float())
        self.meters.add_mean("margin", (chosen - rejected).detach())

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.meters.take()  # what a training step has left is not of this

    def _measures(self, split: Any, loss: float) -> dict[str, float]:
        found = {
            f"{split}_loss": loss,
            **{f"{split}_{name}": x for name, x in self.meters.take(self._strategy).items()},
        }
        if split == "train":
            self.history.append({"step": self.trainer.global_step + 1, **found})
        return found

    @property
    def _strategy(self) -> Any:
        return self.trainer.strategy


class DPOModule(PairsModule):
    """A policy that learns from pairs of answers without a reward model.

    Beside the pairs' measures it logs `chosen_logprob` and `rejected_logprob`, of whole answers under the policy, and
    `chosen_reward` and `rejected_reward`, beta times their distance from the reference.

    Args:
        model: from `prepare_policy`.
        settings: what it was prepared with.
        preference: the objective.
        options: those of `LocalLoRA`.
    """

    def __init__(
        self, model: Prepared, settings: FineTune, preference: Preference = Preference(), **options: Any
    ) -> None:
        super().__init__(model, settings, **options)
        self.preference = preference
        self.reference = Reference(self.model)  # type: ignore[arg-type]

    def objective_settings(self) -> dict[str, Any]:
        return {**super().objective_settings(), "preference": asdict(self.preference)}

    def pair_losses(self, ids: Tensor, prompts: Tensor, lengths: Tensor) -> Tensor:
        mask = answer_mask(prompts, lengths, ids.shape[1])
        model: Any = self.model
        policy = over_answers(answer_logprobs(model, ids, mask).logprobs, mask).chunk(2)
        reference = over_answers(self.reference.logprobs(ids, mask), mask).chunk(2)
        asked, tokens = self.preference, mask.sum(dim=-1).float().chunk(2)
        found = dpo(
            policy[0], policy[1], reference[0], reference[1], asked.beta, asked.kind, asked.label_smoothing,
            (tokens[0], tokens[1]),
        )  # fmt: skip
        self.watch(found.chosen_rewards, found.rejected_rewards)
        sides = (("chosen", policy[0], found.chosen_rewards), ("rejected", policy[1], found.rejected_rewards))
        for name, logprobs, rewards in sides:
            self.meters.add_mean(f"{name}_logprob", logprobs.detach())
            self.meters.add_mean(f"{name}_reward", rewards)
        return found.loss


class RewardModule(PairsModule):
    """A model that learns to give the preferred answer of a pair the larger number.

    Args:
        model: from `prepare_scalar`.
        settings: what it was prepared with.
        center: weight of what holds the rewards around 0; see `bradley_terry`.
        options: those of `LocalLoRA`.
    """

    def __init__(self, model: Prepared, settings: FineTune, center: float = 0.0, **options: Any) -> None:
        if not center >= 0:
            raise ValueError(f"center={center} must be 0 or more")
        if not isinstance(model.model, ScalarModel):
            raise TypeError(f"a {type(model.model).__name__} gives no number; take prepare_scalar")
        super().__init__(model, settings, **options)
        self.center = center

    def objective_settings(self) -> dict[str, Any]:
        return {**super().objective_settings(), "reward": {"center": self.center}}

    def pair_losses(self, ids: Tensor, prompts: Tensor, lengths: Tensor) -> Tensor:
        chosen, rejected = read_last(self.model(ids), lengths).chunk(2)
        self.watch(chosen, rejected)
        self.meters.add_mean("chosen_reward", chosen.detach())
        self.meters.add_mean("rejected_reward", rejected.detach())
        return bradley_terry(chosen, rejected, self.center)
