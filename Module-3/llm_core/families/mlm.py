"""Masked language modelling: hide some tokens of a text, and ask for them. Devlin et al. 2019, section 3.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from llm_data.rows.documents import IGNORE_INDEX
from torch import Tensor

Ids = Int[Tensor, "batch time"]


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden, under the names of `transformers.DataCollatorForLanguageModeling`.

    Args:
        mlm_probability: share of the tokens that are chosen, and become targets.
        mask_replace_prob: share of the chosen that [MASK] replaces.
        random_replace_prob: share of the chosen that a random token replaces. The rest of the chosen stays as it is.

    Raises:
        ValueError: for shares that cannot be.
    """

    mlm_probability: float = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1

    def __post_init__(self) -> None:
        for name in ("mlm_probability", "mask_replace_prob", "random_replace_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a share; give it a value in [0, 1]")
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise ValueError(
                f"mask_replace_prob={self.mask_replace_prob} and random_replace_prob={self.random_replace_prob} "
                "are more than 1 together; lower one of them"
            )


class Masked(NamedTuple):
    """`labels` hold the chosen tokens as they were, -100 elsewhere. They stand where their token stood: no shift."""

    input_ids: Tensor
    labels: Tensor


def mask_tokens(
    input_ids: Ids,
    special: Bool[Tensor, "batch time"],
    mask_token_id: int,
    vocab_size: int,
    masking: Masking,
    generator: torch.Generator | None = None,
) -> Masked:
    """Choose tokens and hide them. From one seed the result is that of `DataCollatorForLanguageModeling`, id by id.

    Args:
        input_ids: the text; left as it is.
        special: True for tokens that are never chosen: padding, ends of text.
        mask_token_id: the id of [MASK].
        vocab_size: random tokens are drawn from all ids below it, as BERT draws them.
        masking: the shares.
        generator: of the draws; the global one by default.
    """

    def coin(share: float) -> Tensor:
        """For each token True with this probability."""
        flips = torch.bernoulli(torch.full(input_ids.shape, float(share)), generator=generator)
        return flips.bool().to(input_ids.device)

    # The order of the draws is the library's: chosen, replaced by [MASK], replaced by a random token, which one.
    chosen = coin(masking.mlm_probability) & ~special
    masked = chosen & coin(masking.mask_replace_prob)
    inputs = input_ids.masked_fill(masked, mask_token_id)
    if masking.random_replace_prob:
        left = 1 - masking.mask_replace_prob
        replaced = chosen & ~masked & coin(min(1.0, masking.random_replace_prob / left))
        words = torch.randint(vocab_size, input_ids.shape, generator=generator).to(input_ids.device)
        inputs = torch.where(replaced, words, inputs)
    return Masked(inputs, input_ids.masked_fill(~chosen, IGNORE_INDEX))
