"""What a checkpoint says about the documents its run trained on, so that no other run takes them for unseen ones.

A document's side is decided by a number in [0, 100) that its text gives: test is below `test_percent`, validation is
what follows up to `test_percent + val_percent`, training the rest. So two shares say all: a side leaks exactly when it
reaches above the place where training began.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_data.text.corpora import Corpus, Split

SHARES = ("val_percent", "test_percent")


def split_record(corpus: Corpus) -> dict[str, Any]:
    """For a checkpoint: the corpus by name and content, and how it was split."""
    return {
        "corpus": corpus.name,
        "fingerprint": corpus.fingerprint,
        "val_percent": corpus.val_percent,
        "test_percent": corpus.test_percent,
    }


def refuse_leaks(trained: Any, here: dict[str, Any], sides: Sequence[Split]) -> None:
    """Refuse to judge a model on documents that it was trained on.

    Args:
        trained: the record of the run that trained; None for a checkpoint that has none.
        here: the record of this run.
        sides: those that are set up here.

    Raises:
        ValueError: when the corpus is the same, by name or content, and validation or test holds documents of the
            other run's training side; or when `trained` is no record.
    """
    if trained is None:
        return
    found = [trained.get(name) for name in SHARES] if isinstance(trained, dict) else []
    numbers = [number for number in found if isinstance(number, (int, float))]
    if len(numbers) < len(SHARES):
        raise ValueError("the checkpoint's record of its split is damaged; take another checkpoint")
    if trained.get("corpus") != here["corpus"] and trained.get("fingerprint") != here["fingerprint"]:
        return
    began = numbers[0] + numbers[1]
    ends = {"test": here["test_percent"], "val": here["test_percent"] + here["val_percent"]}
    for side, end in ends.items():
        if side in sides and end > began:
            raise ValueError(
                f"the {side} side holds documents that the checkpoint was trained on: it had val_percent={numbers[0]} "
                f"and test_percent={numbers[1]}, and here val_percent={here['val_percent']} and "
                f"test_percent={here['test_percent']} reach further; set them as they were"
            )
