"""Answers written by Module 7's engine, with the log-probabilities of the distribution that they were drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from llm_core.generate import Sampling
from llm_core.model import GPT
from llm_serve.engine.config import EngineConfig
from llm_serve.engine.engine import Answer, Engine
from llm_serve.engine.request import Finish, Request
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llm_align.data.pairs import padded
from llm_align.data.records import Prompt
from llm_align.objectives.logprobs import answer_mask

MOST_AT_ONCE = 64  # answers that are written side by side
BLOCK = 16


@dataclass(frozen=True)
class Rollout:
    """Answers to prompts, those to one prompt beside each other.

    Attributes:
        prompts: one for each answer.
        texts: of the answers, without what ends them.
        ids: prompts with their answers, filled up on the right.
        prompt_lengths: tokens of each prompt.
        lengths: tokens of prompt and answer.
        engine: log-probabilities of the answers' tokens where they were drawn, after temperature and cuts; 0 elsewhere.
        finished: whether an answer came to an end by itself.
    """

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    ids: Int[Tensor, "answers time"]
    prompt_lengths: Int[Tensor, " answers"]
    lengths: Int[Tensor, " answers"]
    engine: Float[Tensor, "answers time_less_one"]
    finished: Bool[Tensor, " answers"]

    @property
    def mask(self) -> Bool[Tensor, "answers time_less_one"]:
        """Tokens of the answers, by `answer_mask`."""
        return answer_mask(self.prompt_lengths, self.lengths, self.ids.shape[1])

    @property
    def tokens(self) -> Int[Tensor, " answers"]:
        """Tokens of each answer, its end token included."""
        return self.lengths - self.prompt_lengths


class Writer:
    """Writes answers with a model, which may be trained in between.

    The engine works on the model itself: nothing is copied. What its cache holds of earlier weights is forgotten before
    each call. With `dtype` it works on a copy of that width, made anew at each call, as engines on other devices do.

    Args:
        model: the policy; with adapters or without.
        tokenizer: of the model; None where only tokens are wanted, and texts are empty.
        sampling: how tokens are drawn; its seed is that of the first answer of a call with `seed=0`.
        group: answers to each prompt.
        dtype: of the engine's weights; None for the model's own.

    Raises:
        ValueError: for settings whose log-probabilities would not be those of the policy.
    """

    def __init__(
        self, model: GPT, tokenizer: PreTrainedTokenizerFast | None, sampling: Sampling, group: int,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        if group < 1:
            raise ValueError(f"group={group} must be at least 1")
        if sampling.repetition_penalty != 1:
            raise ValueError("repetition_penalty changes the distribution with every token; leave it at 1")
        own = next(model.parameters()).dtype
        self.dtype = None if dtype in (None, own) else dtype
        self.model, self.tokenizer, self.sampling, self.group = model, tokenizer, sampling, group
        self._engine: tuple[int, Engine] | None = None

    def write(
        self, prompts: Sequence[Prompt], seed: int | Sequence[int] = 0, group: int | None = None
    ) -> Rollout:  # fmt: skip
        """`group` answers to each prompt.

        The answers depend on the model, the prompt and the seeds, and not on which prompts are written together.

        Args:
            prompts: at least one.
            seed: of the first answer; the following answers take the next seeds. Or of each prompt's first answer.
            group: another number of answers than the writer's.
        """
        number, was_training = group or self.group, self.model.training
        engine = self._engine_for(prompts, number)
        seeds = [seed + place * number for place in range(len(prompts))] if isinstance(seed, int) else seed
        requests = [
            Request(prompt.ids, replace(self.sampling, seed=self.sampling.seed + first), n=number, logprobs=0)
            for prompt, first in zip(prompts, seeds, strict=True)
        ]
        try:
            answers = engine.run(requests)
        finally:
            self.model.train(was_training)
        rows = [(prompt, answer) for prompt, each in zip(prompts, answers, strict=True) for answer in each]
        return _rollout(rows, getattr(self.tokenizer, "pad_token_id", None) or 0, next(self.model.parameters()).device)

    def _engine_for(self, prompts: Sequence[Prompt], group: int) -> Engine:
        longest = max(len(prompt.ids) for prompt in prompts) + self.sampling.max_new_tokens
        longest = min(longest, self.model.config.max_position_embeddings)
        at_once = max(group, min(MOST_AT_ONCE, len(prompts) * group))
        blocks = at_once * (-(-longest // BLOCK) + 1)
        if self.dtype is not None:
            self._engine = None  # its weights are those of before
        if self._engine is None or self._engine[0] < blocks:
            config = EngineConfig(
                block_size=BLOCK, num_blocks=blocks, max_num_seqs=at_once, max_num_batched_tokens=max(256, at_once),
                max_waiting=max(1024, len(prompts)), logprobs_mode="processed_logprobs", log_steps=1,
            )  # fmt: skip
            self._engine = blocks, Engine(_engine_model(self.model, self.dtype), self.tokenizer, config)
        engine = self._engine[1]
        engine.model.eval()
        engine.weights_changed()
        return engine


def _engine_model(model: GPT, dtype: torch.dtype | None) -> GPT:
    """The model itself, or a copy of another width with its adapters merged."""
    if dtype is None:
        return model
    from llm_peft.lora.inject import adapters
    from llm_peft.lora.merging import merged

    plain: Any = merged(model) if next(adapters(model), None) is not None else GPT(model.config)
    if plain.model is not model.model and next(adapters(model), None) is None:
        plain.load_state_dict(model.state_dict())
        plain.stop_ids = model.stop_ids
    made: GPT = plain.to(device=next(model.parameters()).device, dtype=dtype)
    return made


def _rollout(rows: Sequence[tuple[Prompt, Answer]], pad_id: int, device: torch.device) -> Rollout:
    for prompt, answer in rows:
        if answer.finish is Finish.ERROR:
            raise ValueError(
                f"no token could be drawn for the prompt {prompt.text[:40]!r}: the model's numbers are not finite, or "
                "nothing is allowed; lower the learning rate, or take an earlier checkpoint"
            )
    batch = padded([(prompt.ids, answer.tokens) for prompt, answer in rows], pad_id)
    engine = torch.zeros(len(rows), batch["input_ids"].shape[1] - 1)
    for place, (prompt, answer) in enumerate(rows):
        start = len(prompt.ids) - 1
        engine[place, start : start + len(answer.tokens)] = torch.tensor([each.logprob for each in answer.logprobs])
    return Rollout(
        [prompt for prompt, _ in rows], [answer.text for _, answer in rows], batch["input_ids"].to(device),
        batch["prompt_lengths"].to(device), batch["lengths"].to(device), engine.to(device),
        torch.tensor([answer.finish is Finish.STOP for _, answer in rows], device=device),
    )  # fmt: skip
