"""How well a model predicts text, in a unit that does not depend on its tokeniser."""

from __future__ import annotations

import math


def bits_per_byte(loss: float, num_tokens: float, num_bytes: float) -> float:
    """Cost of a text in bits for each byte of its UTF-8 form: comparable between models of any vocabularies.

    Gao et al. 2020, *The Pile*, section 3.1 (arXiv:2101.00027).

    Args:
        loss: mean over all predicted tokens of the text, ends of documents included, in nats per token.
        num_tokens: how many tokens were predicted.
        num_bytes: length of the text in bytes, not in characters.

    Raises:
        ValueError: for no text.
    """
    if not num_bytes > 0:
        raise ValueError(f"num_bytes={num_bytes}: bits per byte need at least one byte of text")
    return loss / math.log(2) * num_tokens / num_bytes
