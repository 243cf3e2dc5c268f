"""Choosing the next token, and the one after: temperature, top-k, top-p, repetition penalty, stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from llm_core.model import GPT, KeyValueCache

Logits = Float[Tensor, "batch vocab"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The names and the order of the steps are those of transformers' `generate`.

    Args:
        max_new_tokens: the most that are added to a prompt; fewer where the longest prompt of a call leaves less room.
        temperature: logits are divided by it; 0 takes the likeliest token, and draws nothing.
        top_k: only so many of the likeliest tokens may be drawn; 0 for all.
        top_p: only the likeliest that together have this probability; 1 for all. Holtzman et al. 2020, section 3.1.
        repetition_penalty: the logit of a token that occurred is divided by it if positive, else multiplied. Keskar et
            al. 2019, section 4.1.
        stop_ids: tokens that end a text.
        seed: of the draws.

    Raises:
        ValueError: for values out of range.
    """

    max_new_tokens: int = 100
    temperature: float | int = 1.0
    top_k: int = 0
    top_p: float | int = 1.0
    repetition_penalty: float | int = 1.0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed, holds in (
            ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
            ("temperature", "0 or more", self.temperature >= 0),
            ("temperature", "0, or at least 1e-6: logits overflow", not 0 < self.temperature < 1e-6),
            ("top_k", "0 or more", self.top_k >= 0),
            ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
            ("repetition_penalty", "above 0", self.repetition_penalty > 0),
            ("repetition_penalty", "at least 1e-6: logits overflow", self.repetition_penalty >= 1e-6),
            ("seed", "from -2^63 to 2^64 - 1", -(2**63) <= self.seed < 2**64),
        ):
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)} must be {allowed}")


def penalise(logits: Logits, seen: Int[Tensor, "batch seen"], penalty: float | int) -> Logits:
    """Make tokens of `seen` less likely (for a penalty above 1)."""
    chosen = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(chosen < 0, chosen * penalty, chosen / penalty))


def keep_top_k(logits: Logits, k: int) -> Logits:
    """-inf for all but the k largest (and those equal to the smallest of them)."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Logits, p: float | int) -> Logits:
    """-inf for all but the smallest set of likeliest tokens whose probabilities reach p."""
    ordered, places = logits.sort(descending=False)
    rest = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p  # what lies below the set, together
    rest[:, -1] = False  # the likeliest stays
    return logits.masked_fill(rest.scatter(1, places, rest), -torch.inf)


def adjust(logits: Logits, seen: Int[Tensor, "batch seen"], how: Sampling) -> Logits:
    """The logits that a draw is made from."""
    if how.repetition_penalty != 1:
        logits = penalise(logits, seen, how.repetition_penalty)
    if how.temperature not in (0, 1):
        logits = logits / how.temperature
    if how.top_k:
        logits = keep_top_k(logits, how.top_k)
    return keep_top_p(logits, how.top_p) if how.top_p < 1 else logits


def room(config: Any, prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens a model has positions for after the longest of some prompts.

    Raises:
        ValueError: for an empty prompt, a token that the model does not have, or no room at all.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty; give at least one token to begin with")
    for token in (token for prompt in prompts for token in prompt):
        if not 0 <= token < config.vocab_size:
            wrong = f"a prompt has token {token}, and the model a vocab_size of {config.vocab_size}"
            raise ValueError(f"{wrong}; take the tokenizer that it was trained with")
    longest, positions = max(map(len, prompts)), config.max_position_embeddings
    if longest >= positions:
        raise ValueError(f"a prompt of {longest} tokens leaves no room in {positions} positions; shorten it")
    return int(positions) - longest


def pad_left(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]:
    """Prompts as one tensor, so that all end at the same place, and 1 where there is a token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, (torch.arange(longest, device=device) >= longest - lengths[:, None]).long()


@torch.no_grad()
def generate(model: GPT, prompts: Sequence[Sequence[int]], how: Sampling, pad_id: int = 0) -> list[list[int]]:
    """Continue prompts, all at once, with a cache of keys and values.

    Args:
        model: in evaluation mode, or its dropout would be drawn too.
        prompts: token ids, of any lengths; they are padded on the left.
        how: see `Sampling`.
        pad_id: fills up.

    Returns:
        The new tokens of each prompt, a stop token included.

    Raises:
        ValueError: for an empty prompt, a token out of range, or when the longest leaves no room for a new token.
    """
    most = min(how.max_new_tokens, room(model.config, prompts))
    device = next(model.parameters()).device
    ids, mask = pad_left(prompts, pad_id, device)
    longest = ids.shape[1]
    draw = torch.Generator(device).manual_seed(how.seed)
    stops = torch.tensor(how.stop_ids, dtype=torch.long, device=device)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache, step_ids, lasting = KeyValueCache(), ids, []
    for _ in range(most):
        logits = model(step_ids, attention_mask=mask, cache=cache).logits[:, -1].float()
        # Padding is no token that occurred: it is given the place of the prompt's last token.
        seen = torch.where(mask.bool(), ids, ids[:, longest - 1 : longest])
        logits = adjust(logits, seen, how)
        if how.temperature == 0:
            chosen = logits.argmax(dim=-1)
        else:
            chosen = torch.multinomial(logits.softmax(dim=-1), 1, generator=draw)[:, 0]
        chosen = torch.where(running, chosen, pad_id)
        lasting.append(running)
        running = running & ~torch.isin(chosen, stops)
        step_ids = chosen[:, None]
        ids = torch.cat([ids, step_ids], dim=1)
        mask = torch.cat([mask, torch.ones_like(step_ids)], dim=1)
        if not running.any():
            break
    counts = torch.stack(lasting).sum(dim=0).tolist()
    return [row[longest : longest + count] for row, count in zip(ids.tolist(), counts, strict=True)]


def sample_texts(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], how: Sampling
) -> list[str]:
    """Texts that begin with the prompts, by `generate` for a model of ours, by transformers' own for one of theirs.

    A text ends at the end-of-text token. There is no empty prompt: a model whose documents were trained apart has never
    seen what comes before a document's first token.

    Args:
        model: a `GPT`, or a causal language model of transformers; in evaluation mode.
        tokenizer: the one the model was trained with.
        prompts: the beginnings.
        how: see `Sampling`; the end-of-text token is added to its stop tokens.

    Raises:
        ValueError: for an empty prompt, or one that leaves no room.
    """
    ids = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    if tokenizer.eos_token_id is not None:
        how = replace(how, stop_ids=(*how.stop_ids, tokenizer.eos_token_id))
    pad_id = tokenizer.pad_token_id or 0  # padding is masked: where there is no such token, any other does
    if isinstance(model, GPT):
        new = generate(model, ids, how, pad_id)
    else:
        new = generate_by_transformers(model, ids, how, pad_id)
    return [str(tokenizer.decode(a + b, skip_special_tokens=True)) for a, b in zip(ids, new, strict=True)]


@torch.no_grad()
def generate_by_transformers(
    model: nn.Module, prompts: Sequence[Sequence[int]], how: Sampling, pad_id: int = 0
) -> list[list[int]]:
    """`generate` for a model of transformers, by its own method: the same arguments, the same result when greedy.

    Raises:
        ValueError: as `generate`.
    """
    body: Any = model
    most = min(how.max_new_tokens, room(body.config, prompts))
    ids, mask = pad_left(prompts, pad_id, body.device)
    drawing: dict[str, Any] = {"do_sample": False}
    if how.temperature:
        drawing = {"do_sample": True, "temperature": float(how.temperature)}
        drawing |= {"top_k": how.top_k, "top_p": float(how.top_p)}
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        out = body.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most, pad_token_id=pad_id,
            eos_token_id=list(how.stop_ids) or None, repetition_penalty=float(how.repetition_penalty), **drawing,
        )[:, ids.shape[1] :].tolist()  # fmt: skip
    ends = [next((i + 1 for i, token in enumerate(row) if token in how.stop_ids), len(row)) for row in out]
    return [row[:end] for row, end in zip(out, ends, strict=True)]
