"""A real language model behind the same frozen tower: first the projector says words, then it is heard.

A step through `smollm2-135m` takes a second on one core, and a projector that says nothing yet needs thousands. Most of
what it has to learn needs no language model: which words of the vocabulary a picture's tokens are near to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from llm_core.model import GPT
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from llm_vision.data import Pictures, image_token, joined, rows
from llm_vision.language import embedding
from llm_vision.reader import PictureReader
from llm_vision.recipes import Run, fit
from llm_vision.training import ReaderModule
from llm_vision.vit import ViT

SAYING, HEARD = Run(400, 64, 2e-3), Run(40, 8, 1e-3)
SHARPNESS = 10.0  # what cosines are multiplied by
BEGIN, QUESTION = "Words:", "\nThe picture shows"
LEFT_OUT = ("a", "at", "in", "the")


def words_of(captions: Sequence[str]) -> list[str]:
    """The words of content, each once, in order."""
    return sorted({word for caption in captions for word in caption.split()} - set(LEFT_OUT))


def words_loss(
    said: Float[Tensor, "images patches hidden"], words: Float[Tensor, "words hidden"],
    wanted: Float[Tensor, "images words"],
) -> Float[Tensor, ""]:  # fmt: skip
    """Each vector is near some word (softmax of cosines); together the vectors of a picture are to say its words.

    Minus the mean, over a picture's words, of the logarithm of their share; and the vectors are to be as long as words.

    Args:
        said: the projector's vectors.
        words: rows of the embedding.
        wanted: 1 for the words of a picture.
    """
    near = SHARPNESS * F.normalize(said, dim=-1) @ F.normalize(words, dim=-1).T
    share = near.softmax(dim=-1).mean(dim=1).clamp(min=1e-6)  # (images, words)
    missed = -(wanted * share.log()).sum(dim=-1) / wanted.sum(dim=-1).clamp(min=1)
    length = said.pow(2).mean(dim=-1).sqrt() / words.pow(2).mean().sqrt()
    return missed.mean() + (length - 1).pow(2).mean()


def say_words(
    reader: PictureReader, tokenizer: Callable[..., Any], pictures: Pictures, run: Run = SAYING
) -> list[float]:  # fmt: skip
    """Train the projector to say the words of captions, without a pass through the language model.

    Raises:
        ValueError: for a word that is more than one token.
    """
    names = words_of(pictures.captions)
    ids = tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
    long = [name for name, each in zip(names, ids, strict=True) if len(each) != 1]
    if long:
        raise ValueError(f"{', '.join(long)}: more than one token; take words that the tokenizer knows whole")
    chosen: Int[Tensor, " words"] = torch.tensor(ids)[:, 0]
    table = embedding(reader.language).weight.detach()[chosen]
    wanted = torch.tensor([[float(name in caption.split()) for name in names] for caption in pictures.captions])
    with torch.no_grad():  # the tower is frozen: once is enough
        parts = pictures.pixel_values.split(256)
        states = torch.cat([reader.vision.patch_features(part, reader.feature_layer) for part in parts])
    dice, losses = torch.Generator().manual_seed(run.seed), list[float]()
    optimizer = torch.optim.AdamW(reader.projector.parameters(), lr=run.learning_rate)
    for _ in range(run.steps):
        some = torch.randint(len(states), (run.batch_size,), generator=dice)
        loss = words_loss(reader.projector(states[some]), table, wanted[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def begin_of(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids before a picture: a real model needs some word at its first place, where all attention rests."""
    ids: list[int] = tokenizer(BEGIN, add_special_tokens=False)["input_ids"]
    return ids


def train_real_projector(
    vision: ViT, language_model: nn.Module | GPT, tokenizer: PreTrainedTokenizerFast, pictures: Pictures,
    saying: Run = SAYING, heard: Run = HEARD,
) -> tuple[ReaderModule, list[float], list[float]]:  # fmt: skip
    """A reader whose halves are frozen; `evaluate.write_captions` reads with `questions` of `QUESTION` and
    `begin=begin_of(tokenizer)`.

    Args:
        vision, language_model: trained.
        tokenizer: of the language model.
        pictures: to learn from.
        saying: of `say_words`.
        heard: of captions, through the language model.

    Returns:
        The module, and the losses of both stages.
    """
    pl.seed_everything(saying.seed, verbose=False)
    reader = PictureReader(vision, language_model, image_token(tokenizer))
    said = say_words(reader, tokenizer, pictures, saying)
    answers = [f" {caption}" for caption in pictures.captions]
    made = rows(tokenizer, answers, reader.tokens_per_image, [QUESTION] * len(answers), begin_of(tokenizer))
    module = ReaderModule(reader, learning_rate=heard.learning_rate, warmup_steps=min(3, heard.steps))
    return module, said, fit(module, joined(pictures, made), heard, "captions")
