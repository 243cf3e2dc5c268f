"""May a new model take the old one's place? Scores of both on the same questions, and a rule that can say no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_align.evaluate.contamination import prompts_inside
from llm_align.evaluate.intervals import Interval, paired_bootstrap


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        passed: whether the new model may serve.
        before, after: mean scores.
        difference: after - before, with its interval.
        reason: in a line.
    """

    passed: bool
    before: float
    after: float
    difference: Interval
    reason: str


@dataclass(frozen=True)
class Gate:
    """A new model passes where it is *not worse by more than a margin*, with the asked confidence.

    "Not seen to be worse" would let everything pass that was asked too little: with few questions no difference is
    seen. Here few questions make a wide interval, and that does not pass. (A test of non-inferiority; one-sided, so the
    interval is of confidence 1 - 2 x (1 - confidence).)

    Args:
        margin: that is borne, in the units of the scores.
        confidence: that the true difference is above -margin.
        draws: of the bootstrap.

    Raises:
        ValueError: for a margin of 0 or less, which no number of questions can show of an equal model, and a confidence
            out of range.
    """

    margin: float = 0.05
    confidence: float = 0.95
    draws: int = 10_000

    def __post_init__(self) -> None:
        if not self.margin > 0:
            raise ValueError(f"margin={self.margin} must be above 0: an equal model would hardly ever pass")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence} must be above 0.5 and below 1")

    def decide(self, before: Sequence[float], after: Sequence[float]) -> Verdict:
        """Compare scores of the same questions, in the same order, from 0 to 1.

        Two questions are added, one that is won and one that is lost: ten answers that are all alike would else have an
        interval of no width, and pass as certain. Agresti and Min 2005 (doi:10.1002/sim.1781) add as much to a table of
        pairs.

        Raises:
            ValueError: for scores that are no pairs, or fewer than two, or not from 0 to 1.
        """
        if any(not 0 <= each <= 1 for each in (*before, *after)):
            raise ValueError("the gate compares scores from 0 to 1; divide them by the best that there is")
        found = paired_bootstrap([*before, 0, 1], [*after, 1, 0], 2 * self.confidence - 1, self.draws)
        passed = found.low > -self.margin
        how = "is above" if passed else "is not above"
        reason = f"the difference is {found}; its lower end {how} -{self.margin:g}"
        if not passed and found.high > 0:
            reason += "; the questions are too few to tell"
        count = len(before)
        return Verdict(passed, sum(before) / count, sum(after) / count, found, reason)


def clean(questions: Sequence[str], training: Sequence[str]) -> list[int]:
    """Places of the questions that no training text holds: the gate asks only those.

    Args:
        questions: prompts of the gate.
        training: texts that the new model was trained on.
    """
    seen = set(prompts_inside(questions, training))
    return [place for place in range(len(questions)) if place not in seen]
