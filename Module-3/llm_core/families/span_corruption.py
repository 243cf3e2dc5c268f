"""Span corruption: sentinels in the place of runs of tokens, and those tokens as the target.

Raffel et al. 2020, sections 3.1.4 and 3.3.4. The target lists the sentinels in their order, each followed by the tokens
it stands for, and ends with one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

Row = Int[Tensor, " time"]
Sentinels = Int[Tensor, " sentinels"]


@dataclass(frozen=True)
class SpanCorruption:
    """How much of a text is hidden, and in how long runs.

    Args:
        noise_density: share of the tokens that are hidden.
        mean_noise_span_length: tokens of a run, on average.

    Raises:
        ValueError: for values that cannot be.
    """

    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise ValueError(f"noise_density={self.noise_density} is a share; give it a value between 0 and 1")
        if self.mean_noise_span_length < 1:
            raise ValueError(f"mean_noise_span_length={self.mean_noise_span_length} must be at least 1")

    def counts(self, length: int) -> tuple[int, int]:
        """Hidden tokens and spans of a text of `length` tokens: m = round(n d) and s = round(m / l), at least 1 each.

        Raises:
            ValueError: for a text of fewer than 2 tokens.
        """
        if length < 2:
            raise ValueError(f"a text of {length} token(s) cannot be corrupted; it needs 2, one hidden and one seen")
        noise = min(max(round(length * self.noise_density), 1), length - 1)
        # Before each span stands at least one token that is seen.
        return noise, min(max(round(noise / self.mean_noise_span_length), 1), noise, length - noise)


class Corrupted(NamedTuple):
    """A text with sentinels, of n - m + s tokens, and what they stand for, m + s + 1."""

    inputs: Tensor
    targets: Tensor


def sentinel_ids(vocab_size: int, count: int) -> Sentinels:
    """The last `count` ids of the vocabulary, counted down: `<extra_id_0>` is the very last, as in T5's tokenizer."""
    return torch.arange(vocab_size - 1, vocab_size - 1 - count, -1)


def segments(items: int, count: int, generator: torch.Generator | None = None) -> Int[Tensor, " pieces"]:
    """Lengths of `count` pieces, at least 1 each, that a row of `items` is cut into; all cuts are equally likely."""
    cuts = torch.randperm(items - 1, generator=generator)[: count - 1].sort().values + 1
    return torch.diff(cuts, prepend=torch.tensor([0]), append=torch.tensor([items]))


def noise_mask(
    length: int, corruption: SpanCorruption, generator: torch.Generator | None = None
) -> Bool[Tensor, " time"]:
    """True for the tokens to hide. What is seen and what is hidden alternate, and a text begins with what is seen."""
    noise, spans = corruption.counts(length)
    lengths = torch.stack([segments(length - noise, spans, generator), segments(noise, spans, generator)], dim=1)
    return torch.tensor([False, True]).repeat(spans).repeat_interleave(lengths.flatten())


def corrupt(ids: Row, noise: Bool[Tensor, " time"], sentinels: Sentinels) -> Corrupted:
    """Put a sentinel in the place of each run of hidden tokens.

    Args:
        ids: the text.
        noise: True for the tokens to hide.
        sentinels: ids that occur in no text, one more than there are runs.

    Raises:
        ValueError: for too few sentinels.
    """
    first = noise & ~F.pad(noise, (1, 0))[:-1]
    spans = int(first.sum())
    if len(sentinels) <= spans:
        raise ValueError(f"{spans} spans need {spans + 1} sentinels, and there are {len(sentinels)}; add some")
    sentinel = sentinels[(first.cumsum(0) - 1).clamp(min=0)]  # that of the last run so far
    inputs = torch.where(first, sentinel, ids)[first | ~noise]
    listed = torch.stack([sentinel, ids], dim=1)[torch.stack([first, noise], dim=1)]
    return Corrupted(inputs, torch.cat([listed, sentinels[spans : spans + 1]]))


def restore(
    inputs: Int[Tensor, " inputs"], targets: Int[Tensor, " targets"], sentinels: Sentinels
) -> Int[Tensor, " time"]:
    """The text that `corrupt` took apart.

    Raises:
        ValueError: for targets that begin with no sentinel, have one twice, or leave out one of the inputs.
    """
    known, hidden = set(sentinels.tolist()), dict[int, list[int]]()
    current: list[int] | None = None
    for token in targets.tolist():
        if token in known:
            if token in hidden:
                raise ValueError(f"sentinel {token} stands twice in the targets; each span needs its own")
            current = hidden[token] = []
        elif current is None:
            raise ValueError(f"the targets begin with {token}, which is no sentinel")
        else:
            current.append(token)
    for token in inputs.tolist():
        if token in known and token not in hidden:
            raise ValueError(f"the targets have no span for sentinel {token} of the inputs")
    whole = [part for token in inputs.tolist() for part in hidden.get(token, [token])]
    return torch.tensor(whole, dtype=inputs.dtype)


def corrupt_rows(
    rows: Int[Tensor, "batch time"],
    sentinels: Sentinels,
    corruption: SpanCorruption,
    generator: torch.Generator | None = None,
) -> Corrupted:
    """A batch of rows of one length, each with spans of its own; none needs padding, since the counts depend on the
    length alone."""
    each = [corrupt(row, noise_mask(len(row), corruption, generator), sentinels) for row in rows]
    return Corrupted(torch.stack([one.inputs for one in each]), torch.stack([one.targets for one in each]))
