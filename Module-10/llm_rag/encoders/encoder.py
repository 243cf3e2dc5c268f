"""What turns texts into vectors: one interface for an encoder of others and for one of our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """Texts to vectors of length 1, so that an inner product is a cosine.

    Attributes:
        name: of model and weights: two encoders of one name give one vector to one text.
        dim: numbers of a vector.
    """

    dim: int

    @property
    def name(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """A vector of length 1 for each text, in their order; float32, on the CPU."""
        ...


def mean_pool(
    hidden: Float[Tensor, "batch time hidden"], attention_mask: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch hidden"]:
    """The mean of each row's states over its tokens, padding left out. Reimers and Gurevych 2019, section 3.

    Raises:
        ValueError: for a row that is all padding, which has no mean.
    """
    counts = attention_mask.sum(dim=1)
    if not counts.is_meta and not bool((counts > 0).all()):
        raise ValueError(f"row {int((counts == 0).nonzero()[0])} has no token to take the mean of; leave it out")
    mask = attention_mask[:, :, None].to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / counts[:, None].to(hidden.dtype)


def in_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Places of texts in batches of like length, the longest first: little is padded, and a lack of memory shows at
    once."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def load_encoder(name: str) -> Encoder:
    """The encoder of that name.

    Args:
        name: "minilm", or the folder of an encoder that `BiEncoder.save` wrote.

    Raises:
        ValueError: when there is none, with the ways out.
    """
    from llm_rag.encoders import minilm

    if name == minilm.NAME:
        return minilm.MiniLM()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(f"no encoder {name!r}; take {minilm.NAME}, or the folder that BiEncoder.save wrote")
    from llm_rag.encoders.bi_encoder import load

    return load(folder)


def as_texts(texts: Sequence[str]) -> list[str]:
    """A list of texts.

    Raises:
        ValueError: for one text in the place of several.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be several; for one text give [text]")
    return list(texts)


def empty(dim: int) -> Float[Tensor, "0 {dim}"]:
    """What no texts are encoded to."""
    return torch.empty(0, dim)
