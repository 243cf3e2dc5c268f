"""How often a reader is right, and three controls without which that number means nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from llm_align.evaluate.intervals import Interval, wilson
from transformers import PreTrainedTokenizerFast

from llm_vision.data import Pictures, blank, prompts, shuffled
from llm_vision.reader import PictureReader
from llm_vision.training import VisionClassifier


def write_captions(
    reader: PictureReader, tokenizer: PreTrainedTokenizerFast, pictures: Pictures,
    questions: Sequence[str] | None = None, max_new_tokens: int = 12, batch_size: int = 128, with_image: bool = True,
    begin: Sequence[int] = (),
) -> list[str]:  # fmt: skip
    """What the reader writes about each picture, up to the end of the text.

    Args:
        reader: vision, projector and language model; put into evaluation mode.
        tokenizer: of the language model.
        pictures: to read.
        questions: one for each picture; None for none.
        max_new_tokens: of an answer.
        batch_size: pictures at once.
        with_image: False leaves the pictures' tokens out: what the language model writes by itself. It then begins at
            the end of a text, where there is neither question nor `begin`.
        begin: ids before the picture, as in training.
    """
    device = reader.projector.linear_1.weight.device
    eos, reader, written = tokenizer.eos_token_id, reader.eval(), list[str]()
    for start in range(0, len(pictures), batch_size):
        some = pictures[start : start + batch_size]
        asked = None if questions is None else list(questions[start : start + batch_size])
        made: dict[str, Any]
        if with_image:
            made = prompts(tokenizer, len(some), reader.tokens_per_image, asked, begin)
            made["pixel_values"] = some.pixel_values
        elif asked is None and not begin:
            made = {"input_ids": torch.full((len(some), 1), eos)}
        else:
            made = prompts(tokenizer, len(some), 0, asked, begin)
        made = {name: values.to(device) for name, values in made.items()}
        for ids in reader.generate(**made, max_new_tokens=max_new_tokens, stop_ids=[eos]):
            written.append(tokenizer.decode([each for each in ids if each != eos]).strip())
    return written


def exact_match(written: Sequence[str], wanted: Sequence[str]) -> Interval:
    """Share of answers that are right word for word, with Wilson's interval at 95%.

    Raises:
        ValueError: when there are not as many of both.
    """
    if len(written) != len(wanted):
        raise ValueError(f"{len(written)} answers to {len(wanted)} pictures; give one each")
    return wilson(sum(one == two for one, two in zip(written, wanted, strict=True)), len(wanted))


def attribute_accuracy(written: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of a caption's words that stand where they belong: what a caption that is nearly right is worth."""
    right = total = 0
    for one, two in zip(written, wanted, strict=True):
        words = two.split()
        total += len(words)
        right += sum(a == b for a, b in zip(one.split(), words, strict=False))
    return right / max(total, 1)


def text_prior(captions: Sequence[str]) -> str:
    """The most frequent caption: what is best guessed without a picture."""
    return Counter(captions).most_common(1)[0][0]


def with_controls(
    reader: PictureReader, tokenizer: PreTrainedTokenizerFast, pictures: Pictures, seed: int = 0, **options: Any
) -> dict[str, Interval]:
    """Exact match on pictures, and three controls side by side.

    A reader that only learned how captions sound is as good on "shuffled" and "no image" as on its pictures.

    Returns:
        "picture": its own; "shuffled": another row's; "no image": one grey picture for all; "text prior": no
        picture's tokens at all.
    """
    rows = {"picture": pictures, "shuffled": shuffled(pictures, seed), "no image": blank(pictures)}
    found = {
        name: exact_match(write_captions(reader, tokenizer, each, **options), pictures.captions)
        for name, each in rows.items()
    }
    alone = write_captions(reader, tokenizer, pictures, with_image=False, **options)
    return {**found, "text prior": exact_match(alone, pictures.captions)}


def classified(classifier: VisionClassifier, pictures: Pictures) -> dict[str, Interval]:
    """Share of right answers to each question, by its number, and "all": of pictures with every answer right."""
    right = classifier.eval().predict_classes(pictures.pixel_values) == pictures.classes
    found = {str(place): wilson(int(each.sum()), len(each)) for place, each in enumerate(right.T)}
    return {**found, "all": wilson(int(right.all(dim=1).sum()), len(right))}
