"""What the answers of a rollout are worth: by a function that reads them, or by a reward model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm_align.models.scalar import load_scalar, read_last
from llm_align.rewards.child import Reward
from llm_align.rewards.scores import Rewards
from llm_align.rollout.write import Rollout

MOST_FAILURES = 0.5  # of a round's rewards, beyond which the function is taken to be broken
ROWS = 32  # answers that a reward model reads at a time


class FunctionReward:
    """Rewards by a plain function `(prompt, answer) -> float`.

    A call that fails gives 0. The first failure is told on standard error, all are counted.

    Args:
        function: a function, or a string that names one; see `Rewards`.
        seconds: that one call may take.

    Attributes:
        failures: calls that failed so far.

    Raises:
        ValueError: when a string names no function.
    """

    def __init__(self, function: Reward | str, seconds: float = 1.0) -> None:
        self._rewards = Rewards(function, seconds)
        self.failures = 0

    def __call__(self, rollout: Rollout) -> Tensor:
        """A number for each answer.

        Raises:
            ValueError: when more than half of a round's calls failed.
        """
        scores = self._rewards([prompt.text for prompt in rollout.prompts], list(rollout.texts))
        failed = [place for place, score in enumerate(scores) if score.failure is not None]
        if failed and not self.failures:
            text = rollout.texts[failed[0]]
            print(f"align: a reward failed and counts 0 ({scores[failed[0]].failure}); the answer: {text[:60]!r}",
                  file=sys.stderr)  # fmt: skip
        self.failures += len(failed)
        if len(failed) > MOST_FAILURES * len(scores):
            wrong = f"{len(failed)} of {len(scores)} rewards failed ({scores[failed[0]].failure})"
            raise ValueError(f"{wrong}; mend the function")
        return torch.tensor([score.value for score in scores])

    def close(self) -> None:
        """End the function's process, if it has one."""
        self._rewards.close()


class ModelReward:
    """Rewards by a model of `align reward`, read at each answer's last token.

    Args:
        folder: of the model.
        tokenizer: of the policy, whose tokens the model reads as they are.
        device: where it computes.

    Raises:
        ValueError: when there is no such model, or its tokenizer is another.
    """

    def __init__(self, folder: Path | str, tokenizer: PreTrainedTokenizerBase, device: str = "cpu") -> None:
        self.model, theirs = load_scalar(folder)
        self.model.requires_grad_(False).to(device)
        if theirs is None or _vocabulary(theirs) != _vocabulary(tokenizer):
            wrong = f"{folder} has another tokenizer than the policy"
            raise ValueError(f"{wrong}, and would read other words; train it on the same base model")

    @torch.no_grad()
    def __call__(self, rollout: Rollout) -> Tensor:
        """A number for each answer."""
        self.model.to(rollout.ids.device)
        rows = zip(rollout.ids.split(ROWS), rollout.lengths.split(ROWS), strict=True)
        return torch.cat([read_last(self.model(ids), lengths) for ids, lengths in rows])


def _vocabulary(tokenizer: Any) -> Any:
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: part for name, part in parts.items() if name not in ("truncation", "padding")}
