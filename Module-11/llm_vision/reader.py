"""A model that reads pictures: a vision tower, a projector, and a language model, in LLaVA's shape.

A row of text holds `image_token_id` wherever a token of a picture belongs; the projector's vectors take those places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from llm_core.foreign import vocab_rows
from llm_core.losses import causal_loss, shift
from llm_data.rows.documents import IGNORE_INDEX
from torch import Tensor, nn
from torch.nn import functional as F

from llm_vision import language
from llm_vision.errors import PictureError
from llm_vision.projector import Projector
from llm_vision.vit import ViT

Ids = Int[Tensor, "batch time"]


class ReaderOutput(NamedTuple):
    """`loss` is None without labels, else the mean over the targets, in nats."""

    loss: Tensor | None
    logits: Tensor


def caption_labels(input_ids: Ids, targets: Bool[Tensor, "batch time"], image_token_id: int) -> Ids:
    """The labels of rows: their ids where there is a target, `IGNORE_INDEX` elsewhere, always at a picture's tokens.

    Args:
        input_ids: rows.
        targets: whether a token is to be learned: those of answers, not of questions or padding.
        image_token_id: never a target, whatever `targets` says.
    """
    return input_ids.masked_fill(~targets | (input_ids == image_token_id), IGNORE_INDEX)


class PictureReader(nn.Module):
    """Liu et al. 2023 (arXiv:2304.08485, arXiv:2310.03744). Mirrors `LlavaForConditionalGeneration`.

    Args:
        vision: the tower.
        language_model: a `GPT` or a causal language model of transformers.
        image_token_id: the id that stands for a token of a picture. It needs no row in the embedding: an id beyond the
            vocabulary is never looked up.
        feature_layer: which of the tower's `hidden_states` is read; -1 is the last.
        projector: None makes a new one.
    """

    def __init__(
        self, vision: ViT, language_model: nn.Module, image_token_id: int, feature_layer: int = -1,
        projector: Projector | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if image_token_id < 0:
            raise ValueError(f"image_token_id={image_token_id} must be 0 or more")
        self.vision, self.language = vision, language_model
        width = language.width(language_model)
        self.projector = Projector(vision.config.hidden_size, width) if projector is None else projector
        self.image_token_id, self.feature_layer = image_token_id, feature_layer
        self.vocab_rows = vocab_rows(language_model)

    @property
    def tokens_per_image(self) -> int:
        """How many tokens a picture takes in a row."""
        return self.vision.config.num_patches

    def image_features(self, pixel_values: Num[Tensor, "..."]) -> Float[Tensor, "images patches hidden"]:
        """The vectors that take a picture's places. Raises a PictureError for pictures that the tower refuses."""
        return self.projector(self.vision.patch_features(pixel_values, self.feature_layer))

    def embed(
        self, input_ids: Ids, image_features: Float[Tensor, "images patches hidden"] | None = None
    ) -> Float[Tensor, "batch time hidden"]:
        """Rows as vectors: the embedding's, and the pictures' at their places, row by row from the first picture on.

        Raises:
            PictureError: when places and vectors do not match, also inside a row; for ids that the model has not.
        """
        here = input_ids == self.image_token_id
        self.refuse_unless_they_match(here, image_features)
        text = input_ids.masked_fill(here, 0)
        if not text.is_meta and bool(((text < 0) | (text >= self.vocab_rows)).any()):
            wrong = f"ids from {int(text.min())} to {int(text.max())}, and the language model has {self.vocab_rows}"
            raise PictureError(f"{wrong}, with {self.image_token_id} for a picture; take its own tokenizer")
        embeds: Tensor = language.embedding(self.language)(text)
        if image_features is None:
            return embeds
        return embeds.masked_scatter(here[..., None], image_features.to(embeds.dtype))

    def refuse_unless_they_match(
        self, here: Bool[Tensor, "batch time"], image_features: Tensor | None
    ) -> None:  # fmt: skip
        """Raise a PictureError unless the rows have a place for each vector, and each row has whole pictures.

        The numbers of a whole batch may match where those of its rows do not: a picture would then begin in one row and
        end in the next.
        """
        if here.is_meta:
            return
        images, each = (0, self.tokens_per_image) if image_features is None else image_features.shape[:2]
        places = int(here.sum())
        if places != images * each:
            wrong = f"{places} image tokens in the rows, and {images * each} features of {images} pictures"
            raise PictureError(f"{wrong} ({each} each); write {each} image tokens for each picture")
        for row, found in enumerate(here.sum(dim=1).tolist()):
            if found % each:
                wrong = f"row {row} has {found} image tokens, and a picture has {each}"
                raise PictureError(f"{wrong}; give each row whole pictures")

    def features(
        self, input_ids: Ids, pixel_values: Num[Tensor, "..."] | None = None,
        attention_mask: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time hidden"]:  # fmt: skip
        """What the language model's head reads; arguments as for `forward`."""
        images = None if pixel_values is None else self.image_features(pixel_values)
        return language.features(self.language, self.embed(input_ids, images), attention_mask)

    def forward(
        self, input_ids: Ids, pixel_values: Num[Tensor, "..."] | None = None,
        attention_mask: Int[Tensor, "batch time"] | None = None, labels: Ids | None = None,
    ) -> ReaderOutput:  # fmt: skip
        """Logits for the token after each position, and the mean loss over the targets.

        Args:
            input_ids: rows with image tokens in them.
            pixel_values: (pictures, channels, height, width), of all rows in their order.
            attention_mask: of padded rows, 1 for tokens.
            labels: the same ids, -100 where there is no target; the shift is made here.

        Raises:
            PictureError: for pictures and rows that do not match.
        """
        logits = language.head(self.language)(self.features(input_ids, pixel_values, attention_mask))
        if labels is None:
            return ReaderOutput(None, logits)
        total, targets = causal_loss(logits, self.checked(labels, input_ids))
        return ReaderOutput(total / targets.clamp(min=1), logits)

    def loss(
        self, input_ids: Ids, labels: Ids, pixel_values: Num[Tensor, "..."] | None = None,
        attention_mask: Int[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:  # fmt: skip
        """Sum of the targets' losses, in nats, and their number. The head is applied where there is a target only:
        a picture's tokens have none, and a real model's head is a large part of its work."""
        targets = shift(self.checked(labels, input_ids))
        asked = targets != IGNORE_INDEX
        hidden = self.features(input_ids, pixel_values, attention_mask)[asked]
        logits = language.head(self.language)(hidden)
        return F.cross_entropy(logits.float(), targets[asked], reduction="sum"), asked.sum()

    def checked(self, labels: Ids, input_ids: Ids) -> Ids:
        """The labels. Raises a PictureError where a picture's token is a target: the model would learn to write it."""
        if not labels.is_meta and bool((labels[input_ids == self.image_token_id] != IGNORE_INDEX).any()):
            raise PictureError("an image token is a target of the loss; make the labels with caption_labels")
        return labels

    @torch.no_grad()
    def generate(
        self, input_ids: Ids, pixel_values: Num[Tensor, "..."] | None = None,
        attention_mask: Int[Tensor, "batch time"] | None = None, max_new_tokens: int = 20,
        stop_ids: Sequence[int] = (),
    ) -> list[list[int]]:  # fmt: skip
        """The likeliest continuation of each row, token by token, a stop token included.

        Args:
            input_ids, pixel_values: as for `forward`.
            attention_mask: rows that are padded are padded on the left.
            max_new_tokens: at most.
            stop_ids: end a row.

        Raises:
            PictureError: as `forward`, for rows padded on the right, and for max_new_tokens below 1.
        """
        if max_new_tokens < 1:
            raise PictureError(f"max_new_tokens={max_new_tokens} must be at least 1")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not bool(mask[:, -1].all()):
            raise PictureError("rows are padded on the right, where they go on; pad them on the left")
        padded, cache = not bool(mask.all()), language.new_cache(self.language)
        stops = torch.tensor(list(stop_ids), dtype=torch.long, device=input_ids.device)
        embeds = self.embed(input_ids, None if pixel_values is None else self.image_features(pixel_values))
        running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        rows: list[list[int]] = [[] for _ in input_ids]
        for step in range(max_new_tokens):
            hidden = language.features(self.language, embeds, mask if padded else None, cache)
            chosen: Tensor = language.head(self.language)(hidden[:, -1:])[:, 0].argmax(dim=-1)
            for row, token, goes_on in zip(rows, chosen.tolist(), running.tolist(), strict=True):
                if goes_on:
                    row.append(token)
            running = running & ~torch.isin(chosen, stops)
            if step + 1 == max_new_tokens or not bool(running.any()):
                break
            embeds = language.embedding(self.language)(chosen[:, None])
            mask = F.pad(mask, (0, 1), value=1)
        return rows
