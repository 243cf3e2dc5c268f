"""What labels teach a model, in words, so that a wrong mask is seen before a training and not after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_data.rows.documents import IGNORE_INDEX
from transformers import PreTrainedTokenizerBase


def learned(ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that a model is taught to write: each run of targets, decoded.

    Decoded are the tokens at the targets' places. The labels' own numbers may read well at the wrong places.

    Args:
        ids: of a conversation.
        labels: of the same length, `IGNORE_INDEX` for what is read only; the model shifts them.
        tokenizer: whose ids they are.
    """
    runs: list[list[int]] = []
    before = False
    for token, label in zip(ids, labels, strict=True):
        if label != IGNORE_INDEX:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = label != IGNORE_INDEX
    return [str(tokenizer.decode(run)) for run in runs]


def refuse_wrong_labels(
    messages: Sequence[Mapping[str, str]],
    ids: Sequence[int],
    labels: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Compare what is learned with what the assistant says, each answer with the end at which generation stops.

    Args:
        messages: of the conversation.
        ids, labels: what a training would get.
        tokenizer: whose `eos_token` generation stops at.

    Raises:
        ValueError: for labels that do not stand at their own tokens, and for others than the answers and their ends.
    """
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (token, IGNORE_INDEX):
            raise ValueError(f"label {label} at token {token}, place {place}: the model moves labels, leave them")
    wanted = [each["content"] + str(tokenizer.eos_token) for each in messages if each["role"] == "assistant"]
    found = learned(ids, labels, tokenizer)
    if found != wanted:
        raise ValueError(f"learned is {found}, and the assistant says {wanted}; mend the mask or the template")
