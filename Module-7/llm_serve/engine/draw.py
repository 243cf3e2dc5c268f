"""The next token of each sequence from its row of logits, by its own settings and its own random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import torch
from jaxtyping import Float
from llm_core.generate import adjust
from torch import Tensor

from llm_serve.engine.request import Sequence, TokenLogprobs
from llm_serve.errors import ConstraintError


def draw(logits: Float[Tensor, "rows vocab"], sequences: Rows[Sequence]) -> list[int | None]:
    """A token for each row; None where a constraint allows none.

    Greedy rows without further wishes are chosen in one call, all others one by one: what a request draws never
    depends on who is beside it.
    """
    plain = [row for row, each in enumerate(sequences) if _plain(each)]
    chosen = dict(zip(plain, logits[plain].float().argmax(dim=-1).tolist(), strict=True))
    return [chosen[row] if row in chosen else _draw(logits[row], each) for row, each in enumerate(sequences)]


def _plain(sequence: Sequence) -> bool:
    asked = sequence.request.sampling
    wishes = asked.suppress_tokens or asked.repetition_penalty != 1 or sequence.constraint is not None
    return asked.temperature == 0 and not wishes


def _draw(row: Float[Tensor, " vocab"], sequence: Sequence) -> int | None:
    asked = sequence.request.sampling
    try:
        logits = drawn_from(row, sequence)
    except ConstraintError:
        return None
    if sequence.request.logprobs is not None:
        sequence.drawn_from = logits  # `told` may want them, and would compute them once more
    # Nothing is allowed, a penalty left nothing, or the model's numbers are none: no distribution to draw from.
    if not math.isfinite(logits.max()):
        return None
    if asked.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(logits.softmax(dim=-1).cpu(), 1, generator=sequence.generator))


def drawn_from(row: Float[Tensor, " vocab"], sequence: Sequence) -> Float[Tensor, "1 vocab"]:
    """The logits that a place is drawn from: without what may not be, after temperature and cuts. At temperature 0
    all but the likeliest are out.

    Raises:
        ConstraintError: where a constraint cannot go on.
    """
    asked, logits = sequence.request.sampling, row.float()[None]
    if asked.suppress_tokens or sequence.constraint is not None:
        logits = logits.clone()
    if asked.suppress_tokens:
        logits[:, list(asked.suppress_tokens)] = -torch.inf
    if sequence.constraint is not None:
        allowed = sequence.constraint.mask().to(logits.device)
        logits[:, : len(allowed)].masked_fill_(~allowed, -torch.inf)
        logits[:, len(allowed) :] = -torch.inf
    # The tokens so far are for the penalty alone.
    seen = sequence.tokens if asked.repetition_penalty != 1 else []
    logits = adjust(logits, torch.tensor([seen], dtype=torch.long, device=logits.device), asked)
    if asked.temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        logits = torch.full_like(logits, -torch.inf).scatter(1, best, logits.gather(1, best))
    return logits


def told(row: Float[Tensor, " vocab"], token: int, top: int, drawn_by: Sequence | None = None) -> TokenLogprobs:
    """Log-probabilities of a place: of the token that was taken, and of the `top` likeliest. They are the model's, or
    those that a sequence draws from, before the token is a part of it."""
    if drawn_by is not None:
        kept, drawn_by.drawn_from = drawn_by.drawn_from, None
        row = (drawn_from(row, drawn_by) if kept is None else kept)[0]
    logprobs = row.float().log_softmax(dim=-1)
    best: tuple[tuple[int, float], ...] = ()
    if top:
        values, ids = logprobs.topk(min(top, len(logprobs)))
        best = tuple(zip((int(each) for each in ids.tolist()), values.tolist(), strict=True))
    return TokenLogprobs(token, float(logprobs[token]), best)
