"""Learning from answers of one's own: groups of them (GRPO and its kin), or with a model of values (PPO)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from llm_core.generate import Sampling
from llm_core.model import GPT
from llm_data.rows.collate import Batch
from llm_peft.prepare import Prepared
from llm_peft.settings import FineTune
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llm_align.data.records import Prompt
from llm_align.models.policy import Reference, answer_logprobs
from llm_align.objectives.advantages import group_advantages, leave_one_out
from llm_align.objectives.logprobs import answer_mask, over_answers
from llm_align.objectives.policy import NORMALISERS, RATIOS, Policy, policy_loss, truncated_weights
from llm_align.rollout.write import Rollout, Writer
from llm_align.training.collapse import Collapse
from llm_align.training.kept import ObjectiveModule
from llm_align.training.meters import Meters

ADVANTAGES = ("group", "batch", "none", "leave_one_out")
WIDTHS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
HELD_OUT = 2**40  # the first seed of validation's answers, which training's never reach
COLLAPSE = "collapse"  # key of a checkpoint
# What each answer of a rollout is worth.
Reward = Callable[[Rollout], Tensor]


@dataclass(frozen=True)
class PolicySettings:
    """How a policy writes, and how it learns from what it wrote. The defaults are GRPO's.

    Attributes:
        group: answers to each prompt.
        max_new_tokens: the most tokens of an answer.
        temperature: that answers are drawn at; the policy that is trained is the one at this temperature.
        top_p: share of the probability that is drawn from; below 1 the answers are not the policy's own, which
            `truncate` mends.
        advantage: "group", "batch" or "none" for what the centred rewards of a group are divided by, see
            `group_advantages`; or "leave_one_out".
        normaliser: "answer", "tokens" or "length"; see `policy_loss`.
        ratio: "token", "sequence" or "answer"; see `policy_loss`.
        clip_low, clip_high: the ratio is clipped to 1 - low ... 1 + high.
        beta: weight of the distance from the reference in the loss.
        truncate: the largest importance weight between engine and trainer; None for no weights.
        engine_dtype: width of the weights that write: "auto" for the trained ones themselves, else a copy.
        unfinished_reward: what an answer gets that did not end by itself, in place of its reward; None for no rule.
        measure_kl: look at the distance from the reference also where `beta` is 0, for a forward pass a round.

    Raises:
        ValueError: for what cannot be.
    """

    group: int = 8
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    advantage: str = "group"
    normaliser: str = "answer"
    ratio: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    truncate: float | None = None
    engine_dtype: str = "auto"
    unfinished_reward: float | None = None
    measure_kl: bool = True

    def __post_init__(self) -> None:
        for name, known in (
            ("advantage", ADVANTAGES), ("normaliser", NORMALISERS), ("ratio", RATIOS), ("engine_dtype", tuple(WIDTHS))
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        if self.ratio == "answer" and (self.beta or self.truncate is not None):
            raise ValueError('ratio="answer" weighs no tokens, and takes neither beta nor truncate; leave them out')
        for name, allowed, holds in (
            ("group", "at least 1", self.group >= 1),
            ("clip_low", "from 0 to below 1", 0 <= self.clip_low < 1),
            ("clip_high", "0 or more", self.clip_high >= 0),
            ("beta", "0 or more", self.beta >= 0),
            ("truncate", "above 0, or null", self.truncate is None or self.truncate > 0),
            ("temperature", "above 0: the likeliest answer is always the same one", self.temperature > 0),
        ):
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)} must be {allowed}")
        self.sampling  # noqa: B018  # refuses what cannot be drawn

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, top_p=self.top_p)


class PolicyModule(ObjectiveModule):
    """What GRPO and PPO have in common: rounds of answers, their rewards, and what is watched.

    Logged at each step as `train_...`: `reward` (mean) and `reward_spread` (standard deviation), `length` in tokens,
    `finished` (share that ended by itself), `entropy` and `kl` (nats a token; the second from the reference),
    `mismatch` (mean distance between the trainer's and the engine's log-probabilities), `clipped` (share of tokens),
    and the seconds of a round, `writing` and `scoring`. `val_reward` is that of held-out prompts; `val_loss` is its
    negative, so that the best checkpoint is the one with the highest.

    A run whose reward rises while length or entropy collapses says so, once, on standard error.

    Args:
        model: from `prepare_policy`.
        settings: what it was prepared with.
        reward: what answers are worth.
        policy: how it writes and learns.
        options: those of `LocalLoRA`.
    """

    needs_group = 2

    def __init__(
        self, model: Prepared, settings: FineTune, reward: Reward, policy: PolicySettings = PolicySettings(),
        **options: Any,
    ) -> None:  # fmt: skip
        if policy.group < self.needs_group:
            raise ValueError(f"group={policy.group}: answers are compared with each other; take at least 2")
        body: Any = model.model
        if settings.lora.lora_dropout or body.config.attention_dropout:
            wrong = f"lora_dropout={settings.lora.lora_dropout}, attention_dropout={body.config.attention_dropout}"
            raise ValueError(f"{wrong}: a policy that drops is not the one that wrote the answers; set both to 0")
        super().__init__(model, settings, **options)
        self.policy, self.reward = policy, reward
        self.meters, self.collapse = Meters(), Collapse()
        self.history: list[dict[str, float]] = []  # what was logged of training, a line each
        self.reference = Reference(self.actor)
        self._had_reason = False  # to change anything: an advantage that is not 0
        self._writer: Writer | None = None

    @property
    def actor(self) -> GPT:
        """The policy itself."""
        body: Any = self.model
        actor: GPT = body
        return actor

    @property
    def writer(self) -> Writer:
        """Writes with the policy as it is."""
        if self._writer is None:
            asked, tokenizer = self.policy, self.prepared.tokenizer
            if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerFast):
                raise TypeError(f"a {type(tokenizer).__name__} is no fast tokenizer; take another model")
            self._writer = Writer(self.actor, tokenizer, asked.sampling, asked.group, WIDTHS[asked.engine_dtype])
        return self._writer

    def objective_settings(self) -> dict[str, Any]:
        return {**super().objective_settings(), "policy": asdict(self.policy)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[COLLAPSE] = self.collapse.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.collapse.load_state_dict(checkpoint[COLLAPSE])

    def make_round(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Batch:
        """Write answers to prompts, reward them, and give what is learned from: a row for each answer."""
        begin = time.perf_counter()
        rollout = self.writer.write(prompts, seeds)
        wrote = time.perf_counter()
        rewards = self.rewards_of(rollout)
        self._note(rollout, rewards)
        self.meters.add("writing", wrote - begin, 1)
        self.meters.add("scoring", time.perf_counter() - wrote, 1)
        rows = {"input_ids": rollout.ids, "prompt_lengths": rollout.prompt_lengths, "lengths": rollout.lengths}
        with torch.no_grad():
            return {**rows, **self.learned(rollout, rewards)}

    def rewards_of(self, rollout: Rollout) -> Tensor:
        """What answers are worth, the rule for unfinished ones included.

        Raises:
            ValueError: for rewards that are not finite, or not one an answer.
        """
        rewards = self.reward(rollout).to(rollout.ids.device)
        if rewards.shape != rollout.lengths.shape or not bool(torch.isfinite(rewards).all()):
            raise ValueError("a reward is not finite, or not one an answer; mend the function that gave it")
        if self.policy.unfinished_reward is None:
            return rewards
        return torch.where(rollout.finished, rewards, self.policy.unfinished_reward)

    def _note(self, rollout: Rollout, rewards: Tensor) -> None:
        self.meters.add_mean("reward", rewards)
        self.meters.add("reward_spread", float(rewards.std(unbiased=False)), 1)
        self.meters.add_mean("length", rollout.tokens.float())
        self.meters.add_mean("finished", rollout.finished.float())

    def old_and_reference(self, rollout: Rollout) -> Batch:
        """What the trainer and the reference say of answers that were just written, with `weights` where asked for."""
        mask, heat = rollout.mask, self.policy.temperature
        said = answer_logprobs(self.actor, rollout.ids, mask, heat)
        found = {"old": said.logprobs}
        distance = (said.logprobs - rollout.engine).abs()
        self.meters.add("mismatch", float(over_answers(distance, mask).sum()), int(mask.sum()))
        self.meters.add("entropy", float(said.entropy.sum()), int(mask.sum()))
        if self.policy.truncate is not None:
            found["weights"] = truncated_weights(said.logprobs, rollout.engine, self.policy.truncate)
        if self.policy.measure_kl or self.policy.beta:
            found["reference"] = self.reference.logprobs(rollout.ids, mask, heat)
        return found

    def learned(self, rollout: Rollout, rewards: Tensor) -> Batch:
        """What is learned from, a row for each answer: `advantages`, `old`, and what else the loss takes."""
        raise NotImplementedError

    def objective(self, batch: Mapping[str, Tensor], mask: Tensor) -> Policy:
        """The clipped objective over a batch of answers."""
        asked = self.policy
        self._had_reason = self._had_reason or bool(batch["advantages"].any())
        said = answer_logprobs(self.actor, batch["input_ids"], mask, asked.temperature)
        found = policy_loss(
            said.logprobs, batch["old"], batch["advantages"], mask, normaliser=asked.normaliser,
            max_length=asked.max_new_tokens, ratio=asked.ratio, low=asked.clip_low, high=asked.clip_high,
            beta=asked.beta, reference=batch.get("reference"), weights=batch.get("weights"),
        )  # fmt: skip
        tokens = int(mask.sum())
        self.meters.add("clipped", found.clipped * tokens, tokens)
        self.meters.add("kl", found.kl * tokens, tokens)
        return found

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # A first round of equal rewards changes nothing, and is no mistake; nor does a batch inside a step.
        if self._had_reason and (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(outputs, batch, batch_idx)

    def _measures(self, split: Any, loss: float) -> dict[str, float]:
        trainer: Any = self.trainer
        found = self.meters.take(trainer.strategy)
        if split == "train":
            line = {"step": trainer.global_step + 1, "loss": loss, **found}
            self.history.append(line)
            if "reward" in found:
                self.collapse.see(line)
        return {f"{split}_loss": loss, **{f"{split}_{name}": value for name, value in found.items()}}

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._held, self.meters = self.meters, Meters()  # a round may be under way

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        trainer: Any = self.trainer
        prompts = [trainer.datamodule.prompts["val"][number] for number in batch["numbers"].tolist()]
        if not prompts:  # a rank has fewer than the others
            return
        seeds = [HELD_OUT + number for number in batch["numbers"].tolist()]
        rollout = self.writer.write(prompts, seeds, group=1)
        rewards = self.rewards_of(rollout)
        self._eval_losses -= float(rewards.sum())
        self._eval_targets += len(rewards)
        self._note(rollout, rewards)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.meters = self._held


class GRPOModule(PolicyModule):
    """A policy that learns from groups of its answers: those better than their group's mean are made likelier.

    GRPO (Shao et al. 2024); with advantage="none" and normaliser="length" Dr. GRPO (Liu et al. 2025); with
    normaliser="tokens" DAPO's loss; with ratio="sequence" GSPO's; with advantage="leave_one_out" and ratio="answer"
    RLOO (Ahmadian et al. 2024). Arguments as `PolicyModule`.
    """

    def learned(self, rollout: Rollout, rewards: Tensor) -> Batch:
        asked = self.policy
        if asked.advantage == "leave_one_out":
            advantages = leave_one_out(rewards, asked.group)
        else:
            everyone, first = rewards, 0
            if asked.advantage == "batch" and self._trainer is not None:  # the spread of all, over all ranks
                gathered: Any = self.all_gather(rewards)
                everyone, first = gathered.flatten(), self.trainer.global_rank * len(rewards)
            advantages = group_advantages(everyone, asked.group, asked.advantage)[first : first + len(rewards)]
        equal = rewards.view(-1, asked.group)
        self.meters.add_mean("equal_groups", (equal == equal[:, :1]).all(dim=1).float())  # nothing to learn from them
        return {"advantages": advantages, **self.old_and_reference(rollout)}

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum of the losses of a batch, and what it is divided by."""
        mask = answer_mask(batch["prompt_lengths"], batch["lengths"], batch["input_ids"].shape[1])
        found = self.objective(batch, mask)
        return found.total, torch.tensor(found.divisor, device=mask.device)
