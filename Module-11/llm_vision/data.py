"""Pictures and their captions as the tensors a model takes, and a tokenizer of whole words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from llm_data.tokenizers.fast import encode_documents
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler
from transformers import PreTrainedTokenizerFast

from llm_vision.drawn.shapes import Drawn, draw_specs, render
from llm_vision.errors import PictureError
from llm_vision.images import Preprocess
from llm_vision.reader import caption_labels

IMAGE, END_OF_TEXT, PAD = "<image>", "<|endoftext|>", "<|pad|>"
SHAPES = Preprocess(32)


@dataclass(frozen=True)
class Pictures:
    """Pictures, and what is true of each.

    Attributes:
        pixel_values: normalised.
        captions: a sentence each.
        classes: the number of each attribute's value; empty where there are none.
    """

    pixel_values: Float[Tensor, "number channels height width"]
    captions: tuple[str, ...]
    classes: Int[Tensor, "number attributes"]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, chosen: slice) -> Pictures:
        return Pictures(self.pixel_values[chosen], self.captions[chosen], self.classes[chosen])

    @classmethod
    def of(cls, specs: Sequence[Drawn]) -> Pictures:
        """Drawn shapes."""
        classes = torch.tensor([spec.classes for spec in specs])
        return cls(SHAPES.batch(render(specs)), tuple(spec.caption for spec in specs), classes)


@dataclass(frozen=True)
class Splits:
    """Pictures to train on, to test on, of combinations that training never shows, and of pairs of colour and shape
    that it never shows."""

    train: Pictures
    test: Pictures
    unseen: Pictures
    unseen_pair: Pictures


def shape_splits(train: int = 5_000, test: int = 500, unseen: int = 300, seed: int = 0) -> Splits:
    """Drawn shapes in four parts; no picture is in two of them."""
    sizes = {"seen": test, "unseen": unseen, "unseen pair": unseen}
    parts = [draw_specs(number, 4 * seed + place, kind) for place, (kind, number) in enumerate(sizes.items())]
    return Splits(*map(Pictures.of, [draw_specs(train, 4 * seed + 3), *parts]))


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token for each word between spaces, then `<|endoftext|>`, `<|pad|>` and `<image>`.

    A word that did not occur is refused by `encode_documents`.

    Raises:
        ValueError: for texts without a word.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = sorted({word for text in texts for word in text.split()})
    if not words:
        raise ValueError("no word in the texts; there is nothing to make a vocabulary of")
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # a space between words
    tokenizer.add_special_tokens([END_OF_TEXT, PAD, IMAGE])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def image_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of `<image>`; for a tokenizer without it, the first that its vocabulary leaves free."""
    found = tokenizer.get_vocab().get(IMAGE)
    return len(tokenizer) if found is None else int(found)


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without any beginning or end. Raises a PictureError for a word that is no token."""
    from tokenizers import models

    if isinstance(tokenizer.backend_tokenizer.model, models.WordLevel):
        known = tokenizer.get_vocab()
        missing = sorted({word for text in texts for word in text.split() if word not in known})
        if missing:
            raise PictureError(f"no token for {', '.join(missing[:5])}; make the vocabulary from all texts")
    return encode_documents(tokenizer, texts)


def rows(
    tokenizer: PreTrainedTokenizerFast, answers: Sequence[str], image_tokens: int,
    questions: Sequence[str] | None = None, begin: Sequence[int] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """Rows to train on: a picture's tokens, the question, the answer and the end of the text.

    Args:
        tokenizer: of the language model.
        answers: what is to be written; it and the end of the text are the targets.
        image_tokens: of each picture; 0 for rows of text alone.
        questions: one for each answer; None for none.
        begin: ids before the picture, for a model that always saw some at the beginning of a text.

    Returns:
        `input_ids`, `labels` and `attention_mask`, padded on the right.

    Raises:
        PictureError: for a word that is no token, and numbers that do not match.
    """
    asked = [""] * len(answers) if questions is None else questions
    if len(asked) != len(answers) or not answers:
        raise PictureError(f"{len(asked)} questions and {len(answers)} answers; give one each")
    image, eos = image_token(tokenizer), tokenizer.eos_token_id
    before = [[*begin, *[image] * image_tokens, *ids] for ids in encode(tokenizer, asked)]
    after = [[*ids, eos] for ids in encode(tokenizer, answers)]
    longest = max(len(one) + len(two) for one, two in zip(before, after, strict=True))
    ids = torch.full((len(before), longest), _filler(tokenizer))
    there, targets = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (one, two) in enumerate(zip(before, after, strict=True)):
        length = len(one) + len(two)
        ids[row, :length] = torch.tensor(one + two)
        there[row, :length], targets[row, len(one) : length] = 1, True
    return {"input_ids": ids, "labels": caption_labels(ids, targets, image), "attention_mask": there}


def prompts(
    tokenizer: PreTrainedTokenizerFast, number: int, image_tokens: int, questions: Sequence[str] | None = None,
    begin: Sequence[int] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """Rows to continue: a picture's tokens and the question, padded on the left. Arguments as for `rows`."""
    asked = encode(tokenizer, [""] * number if questions is None else questions)
    made = [[*begin, *[image_token(tokenizer)] * image_tokens, *ids] for ids in asked]
    longest = max(map(len, made))
    if not longest:
        raise PictureError("a row with neither picture nor question has nothing to continue; give a question")
    ids = torch.tensor([[_filler(tokenizer)] * (longest - len(row)) + row for row in made])
    there = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in made])
    return {"input_ids": ids, "attention_mask": there}


def _filler(tokenizer: PreTrainedTokenizerFast) -> int:
    """Fills up rows; the mask and the labels leave it out, so that any token will do where there is none for it."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


class Table(Dataset[Any]):
    """Tensors whose first axis counts the same rows; a list of numbers gives a batch, as a dictionary."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors
        lengths = {name: len(values) for name, values in tensors.items()}
        if len(set(lengths.values())) != 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise PictureError(f"tables of different lengths: {told}; give a row of each for every picture")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        return {name: values[chosen] for name, values in self.tensors.items()}


def batches(table: Table, batch_size: int, seed: int | None = None) -> DataLoader[Any]:
    """Batches of a table: shuffled anew in each epoch, the remainder left out; with seed=None in order, and all."""
    if seed is None:
        sampler = BatchSampler(SequentialSampler(table), batch_size, drop_last=False)
    else:
        dice = torch.Generator().manual_seed(seed)
        sampler = BatchSampler(RandomSampler(table, generator=dice), min(batch_size, len(table)), drop_last=True)
    return DataLoader(table, batch_size=None, sampler=sampler)


def joined(pictures: Pictures, made: dict[str, Tensor]) -> Table:
    """Pictures beside the rows that read them."""
    return Table(pixel_values=pictures.pixel_values, **made)


def brief(pictures: Pictures) -> Pictures:
    """The same pictures; of each caption what comes before the place: "a small red circle"."""
    short = tuple(caption.split(" at ")[0].split(" in ")[0] for caption in pictures.captions)
    return Pictures(pictures.pixel_values, short, pictures.classes)


def shuffled(pictures: Pictures, seed: int = 0) -> Pictures:
    """The same captions with pictures of other rows: none keeps its own, where there are two at least."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    moved = torch.empty_like(order)
    moved[order] = order.roll(1)  # one cycle through all
    return Pictures(pictures.pixel_values[moved], pictures.captions, pictures.classes[moved])


def blank(pictures: Pictures) -> Pictures:
    """The same captions with one picture for all: the mean of them, in which nothing can be read."""
    mean = pictures.pixel_values.mean(dim=0, keepdim=True).mean(dim=(2, 3), keepdim=True)
    return Pictures(mean.expand_as(pictures.pixel_values).contiguous(), pictures.captions, pictures.classes)


def as_array(values: Float[Tensor, "3 height width"], preprocess: Preprocess = SHAPES) -> np.ndarray:
    """Normalised pixels as a picture to look at, (height, width, 3) uint8."""
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    made: np.ndarray = ((values.movedim(0, -1) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return made
