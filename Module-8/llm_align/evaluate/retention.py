"""What a training took away: bits per byte of other text and a score on another task, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from llm_peft.tasks.other_text import OtherText
from torch import nn

from llm_align.evaluate.intervals import Interval, paired_bootstrap


@dataclass(frozen=True)
class Abilities:
    """What a model can do beside what it is being taught.

    Attributes:
        bits: by text, bits per byte of each of its rows.
        scores: of the other task's questions, each from 0 to 1.
    """

    bits: Mapping[str, tuple[float, ...]]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Change:
    """A mean before and after.

    Attributes:
        before, after: means over the same rows or questions.
        error: standard error of after - before, over rows or questions.
        interval: of after - before, by the paired bootstrap.
    """

    before: float
    after: float
    error: float
    interval: Interval

    @property
    def difference(self) -> float:
        """After less before; of bits, above 0 is forgotten."""
        return self.after - self.before


@dataclass(frozen=True)
class Retention:
    """What became of a model's other abilities.

    Attributes:
        bits: by text, bits per byte.
        score: of the other task.
    """

    bits: dict[str, Change]
    score: Change


def abilities(model: nn.Module, texts: Sequence[OtherText], scores: Sequence[float]) -> Abilities:
    """Measure a model on each row of some texts, in whatever mode it is.

    Args:
        model: whose output has `logits`.
        texts: from `other_texts` with the model's tokenizer.
        scores: of another task's questions, scored by its own function.
    """
    bits = {
        text.name: tuple(OtherText(text.name, row[None], text.bytes_per_token).bits(model) for row in text.ids)
        for text in texts
    }
    return Abilities(bits, tuple(float(each) for each in scores))


def retention(before: Abilities, after: Abilities, seed: int = 0) -> Retention:
    """Compare the same model before and after a training, row by row and question by question.

    Args:
        before, after: on the same texts and questions.
        seed: of the bootstrap.

    Raises:
        ValueError: when the texts or the questions are others.
    """
    if before.bits.keys() != after.bits.keys():
        wrong = f"texts {', '.join(before.bits)} before and {', '.join(after.bits)} after"
        raise ValueError(f"{wrong}; measure both on the same texts")
    bits = {name: _change(values, after.bits[name], seed) for name, values in before.bits.items()}
    return Retention(bits, _change(before.scores, after.scores, seed))


def _change(before: Sequence[float], after: Sequence[float], seed: int) -> Change:
    interval = paired_bootstrap(before, after, seed=seed)  # refuses what is no pair
    difference = np.subtract(after, before)
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return Change(float(np.mean(before)), float(np.mean(after)), error, interval)
