"""Tasks by name, and the files that a training reads, made of a task's questions."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from course.files import write_text
from llm_align.tasks.task import Question, Task

NAMES = ("arithmetic", "functions", "signatures", "strict_json")
FILES = ("sft.jsonl", "prompts.jsonl", "pairs.jsonl", "held_out.jsonl")


def named(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: when there is none.
    """
    if name not in NAMES:
        raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(NAMES)}")
    return cast(Task, importlib.import_module(f"llm_align.tasks.{name}"))


def write_files(task: Task | str, folder: Path | str, number: int, seed: int = 0, noise: float = 0.0) -> list[Path]:
    """Write four files of a task, each whole or not at all, and no question in two of them.

    `sft.jsonl` has right answers to imitate ("messages", or "prompt" with "completion"), `prompts.jsonl` and
    `held_out.jsonl` prompts to answer ("messages" up to the user's turn, or "prompt"), and `pairs.jsonl` prompts with
    a "chosen" and a "rejected" answer.

    Args:
        task: or its name.
        folder: where they go; it is made where it is missing.
        number: of lines in each file.
        seed: of the questions, and of which pairs are flipped.
        noise: share of the pairs whose answers change places, from 0 to 1; rounded to whole pairs.

    Returns:
        The paths, in the order of `FILES`.

    Raises:
        ValueError: for a number below 1, a noise outside of its range, and when the task has too few questions.
        OSError: when a file cannot be written.
    """
    if number < 1:
        raise ValueError(f"number={number}: each file has at least 1 line")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise={noise}: a share of the pairs is from 0 to 1")
    task = named(task) if isinstance(task, str) else task
    found = task.questions(len(FILES) * number, seed)
    sft, prompts, pairs, held_out = (found[part * number : (part + 1) * number] for part in range(len(FILES)))
    flipped = set(random.Random(seed).sample(range(number), round(noise * number)))
    records = (
        [_taught(each) for each in sft],
        [_asked(each) for each in prompts],
        [_compared(each, place in flipped) for place, each in enumerate(pairs)],
        [_asked(each) for each in held_out],
    )
    paths = [Path(folder).expanduser() / file for file in FILES]
    for path, lines in zip(paths, records, strict=True):
        write_text(path, _text(lines))
    return paths


def _asked(question: Question) -> dict[str, Any]:
    return {"messages": list(question.messages)} if question.messages else {"prompt": question.prompt}


def _taught(question: Question) -> dict[str, Any]:
    if question.messages:
        return {"messages": [*question.messages, {"role": "assistant", "content": question.answer}]}
    return {"prompt": question.prompt, "completion": question.answer}


def _compared(question: Question, flipped: bool) -> dict[str, Any]:
    chosen, rejected = (question.wrong, question.answer) if flipped else (question.answer, question.wrong)
    return {**_asked(question), "chosen": chosen, "rejected": rejected}


def _text(records: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
