"""What a task is: questions with a right and a wrong answer, and a reward that reads prompt and answer alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """One question, as a conversation or as the beginning of a text.

    Attributes:
        answer: a right one; its reward is 1.0.
        wrong: a plausible one that is not; its reward is less.
        messages: turns with `role` and `content` up to the user's; empty where `prompt` is given.
        prompt: a text that the answer continues; empty where `messages` are given.

    Raises:
        ValueError: when it has neither of the two or both, or when the last turn is not the user's.
    """

    answer: str
    wrong: str
    messages: tuple[Mapping[str, str], ...] = ()
    prompt: str = ""

    def __post_init__(self) -> None:
        if bool(self.messages) == bool(self.prompt):
            raise ValueError("a question has either messages or a prompt")
        if self.messages and self.messages[-1]["role"] != "user":
            raise ValueError(f"a question ends with the user's turn, not the {self.messages[-1]['role']}'s")

    @property
    def text(self) -> str:
        """What a reward gets as the prompt: the last user turn's content, or the plain prompt."""
        return self.messages[-1]["content"] if self.messages else self.prompt


class Task(Protocol):
    """A module of this package that has these three names is a task."""

    name: str

    def questions(self, number: int, seed: int = 0) -> list[Question]:
        """Different questions, in an order drawn with the seed.

        Raises:
            ValueError: when there are fewer.
        """

    def reward(self, prompt: str, answer: str) -> float:
        """From 0 to 1. The prompt is `Question.text`; the right answer is found from it.

        Raises:
            ValueError: when the prompt is none of the task's. Whatever the answer is, nothing is raised.
        """


def drawn(possible: Sequence[T], number: int, seed: int, name: str) -> list[T]:
    """`number` different members of `possible`, in an order drawn with the seed.

    Args:
        possible: all there are, each once.
        number: how many are wanted.
        seed: of the draw.
        name: of the task, for the error.

    Raises:
        ValueError: when there are fewer, or the number is negative.
    """
    if not 0 <= number <= len(possible):
        raise ValueError(f"the task {name} has {len(possible):,} questions, and {number:,} were asked for")
    return random.Random(seed).sample(possible, number)


def foreign(name: str, prompt: str) -> ValueError:
    """The error for a prompt that a task did not write."""
    return ValueError(f"the prompt {prompt[:60]!r} is no question of the task {name}; use prompts of its `questions`")
