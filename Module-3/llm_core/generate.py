"""Choosing the next token, and the one after: temperature, top-k, top-p, repetition penalty, stop tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from llm_data.errors import is_failure
from llm_data.tokenizers.fast import begin_ids
from llm_data.tokenizers.pretokenize import refuse_surrogates
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

from llm_core.foreign import max_positions, vocab_rows
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
        suppress_tokens: tokens that are never drawn, such as rows of a vocabulary that stand for no token.
        seed: of the draws.

    Raises:
        ValueError: for values out of range.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed, holds in (
            ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
            ("temperature", "0 or more", 0 <= self.temperature < math.inf),
            ("temperature", "0, or at least 1e-6: logits overflow", not 0 < self.temperature < 1e-6),
            ("top_k", "0 or more", self.top_k >= 0),
            ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
            ("repetition_penalty", "above 0", 0 < self.repetition_penalty < math.inf),
            ("repetition_penalty", "at least 1e-6: logits overflow", self.repetition_penalty >= 1e-6),
            ("seed", "from -2^63 to 2^64 - 1", -(2**63) <= self.seed < 2**64),
        ):
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)} must be {allowed}")


def penalise(logits: Logits, seen: Int[Tensor, "batch seen"], penalty: float) -> Logits:
    """Make tokens of `seen` less likely (for a penalty above 1)."""
    chosen = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(chosen < 0, chosen * penalty, chosen / penalty))


def keep_top_k(logits: Logits, k: int) -> Logits:
    """-inf for all but the k largest (and those equal to the smallest of them)."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Logits, p: float) -> Logits:
    """-inf for all but the smallest set of likeliest tokens whose probabilities reach p."""
    ordered, places = logits.sort(descending=False)
    rest = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p  # what lies below the set, together
    rest[:, -1] = False  # the likeliest stays
    return logits.masked_fill(rest.scatter(1, places, rest), -torch.inf)


def adjust(logits: Logits, seen: Int[Tensor, "batch seen"], sampling: Sampling) -> Logits:
    """The logits that a draw is made from."""
    if sampling.repetition_penalty != 1:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    return keep_top_p(logits, sampling.top_p) if sampling.top_p < 1 else logits


def room(model: nn.Module, prompts: Sequence[Sequence[int]], wanted: int) -> int:
    """How many of `wanted` tokens a model has positions for after the longest of some prompts.

    Raises:
        ValueError: for an empty prompt, a token that the model does not have, or no room at all.
    """
    body: Any = model
    rows, positions = vocab_rows(model), max_positions(body.config)
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty; give at least one token to begin with")
    for token in (token for prompt in prompts for token in prompt):
        if not 0 <= token < rows:
            wrong = f"a prompt has token {token}, and the model a vocab_size of {rows}"
            raise ValueError(f"{wrong}; take the tokenizer that it was trained with")
    longest = max(map(len, prompts))
    if positions is None:
        return wanted
    if longest >= positions:
        raise ValueError(f"a prompt of {longest} tokens leaves no room in {positions} positions; shorten it")
    return min(wanted, positions - longest)


def pad_left(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]:
    """Prompts as one tensor, so that all end at the same place, and 1 where there is a token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, (torch.arange(longest, device=device) >= longest - lengths[:, None]).long()


@torch.no_grad()
def generate(model: GPT, prompts: Sequence[Sequence[int]], sampling: Sampling, pad_id: int = 0) -> list[list[int]]:
    """Continue prompts, all at once, with a cache of keys and values.

    Args:
        model: in evaluation mode, or its dropout would be drawn too.
        prompts: token ids, of any lengths; they are padded on the left.
        sampling: see `Sampling`.
        pad_id: fills up.

    Returns:
        The new tokens of each prompt, a stop token included.

    Raises:
        ValueError: for an empty prompt, a token out of range, or when the longest leaves no room for a new token.
    """
    most = room(model, prompts, sampling.max_new_tokens)
    device = next(model.parameters()).device
    ids, mask = pad_left(prompts, pad_id, device)
    longest = ids.shape[1]
    draw = torch.Generator(device).manual_seed(sampling.seed)
    stops = torch.tensor(sampling.stop_ids, dtype=torch.long, device=device)
    never = torch.tensor(sampling.suppress_tokens, dtype=torch.long, device=device)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache, step_ids, lasting = KeyValueCache(), ids, []
    padded = bool((mask == 0).any())  # without padding no mask is needed, which has a row for each position
    for _ in range(most):
        logits = model(step_ids, attention_mask=mask if padded else None, cache=cache).logits[:, -1].float()
        # Padding is no token that occurred: it is given the place of the prompt's last token.
        seen = torch.where(mask.bool(), ids, ids[:, longest - 1 : longest])
        logits = adjust(logits.index_fill(1, never, -torch.inf), seen, sampling)
        if sampling.temperature == 0:
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


def stop_ids(model: nn.Module) -> tuple[int, ...]:
    """The tokens that end a text of a model: those of its `generation_config.json` (a chat model has several).

    Raises:
        ValueError: when they are no tokens.
    """
    body: Any = model
    if isinstance(model, GPT):
        return model.stop_ids
    ends = getattr(getattr(body, "generation_config", None), "eos_token_id", None)
    found = () if ends is None else tuple(ends) if isinstance(ends, (list, tuple)) else (ends,)
    if not all(type(each) is int and -1 <= each < 2**63 for each in found):
        raise ValueError(f"eos_token_id={ends!r} of the model is no token, nor a list of tokens; mend its config")
    return found


def set_stop_ids(model: nn.Module, ends: Sequence[int]) -> None:
    """Give a model the tokens that end its texts, as `stop_ids` tells them."""
    body: Any = model
    if isinstance(model, GPT):
        model.stop_ids = tuple(int(end) for end in ends)
    elif ends:
        body.generation_config.eos_token_id = [int(end) for end in ends]


def encode_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """The ids that a model is given to go on from: the begin-of-text token, where the tokenizer puts one before a text,
    and the prompt's. What the tokenizer puts behind a text is left out, or the text would be at its end.

    Raises:
        ValueError: for an empty prompt, and for one that the vocabulary cannot spell.
    """
    refuse_surrogates(prompt)
    try:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
    except BaseException as error:  # the library's own class is Exception, and a panic in Rust is none
        if not is_failure(error):
            raise
        has = tokenizer.backend_tokenizer.token_to_id
        place = next((i for i, letter in enumerate(prompt) if has(letter) is None), None)
        if place is None:
            raise
        wrong = f"character {place} of the prompt, {prompt[place]!r}, is not in the model's vocabulary"
        raise ValueError(f"{wrong}; leave it out") from error
    return [*begin_ids(tokenizer), *ids]


def sample_texts(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], sampling: Sampling
) -> list[str]:
    """Texts that begin with the prompts, by `generate` for a model of ours, by transformers' own for one of theirs.

    A text ends at the end-of-text token. There is no empty prompt, unless the tokenizer has a begin-of-text token: a
    model whose documents were trained apart has never seen what comes before a document's first token.

    Args:
        model: a `GPT`, or a causal language model of transformers; in evaluation mode.
        tokenizer: the one the model was trained with.
        prompts: the beginnings.
        sampling: see `Sampling`; the model's and the tokenizer's end-of-text tokens are added to its stop tokens, and
            rows of the vocabulary without a token are never drawn.

    Raises:
        ValueError: for an empty prompt, one that leaves no room, or one that the vocabulary cannot spell.
    """
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    ends = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    known = set(tokenizer.get_vocab().values())
    without = tuple(row for row in range(vocab_rows(model)) if row not in known)
    sampling = replace(
        sampling,
        stop_ids=tuple(dict.fromkeys((*sampling.stop_ids, *stop_ids(model), *ends))),
        suppress_tokens=(*sampling.suppress_tokens, *without),
    )
    pad_id = tokenizer.pad_token_id or 0  # padding is masked: where there is no such token, any other does
    new = (generate if isinstance(model, GPT) else generate_by_transformers)(model, ids, sampling, pad_id)  # type: ignore[arg-type]
    return [str(tokenizer.decode(a + b, skip_special_tokens=True)) for a, b in zip(ids, new, strict=True)]


@torch.no_grad()
def generate_by_transformers(
    model: nn.Module, prompts: Sequence[Sequence[int]], sampling: Sampling, pad_id: int = 0
) -> list[list[int]]:
    """`generate` for a model of transformers, by its own method: the same arguments, the same result when greedy.

    Only what `sampling` asks for counts: what the model's `generation_config.json` says beside it is left out.

    Raises:
        ValueError: as `generate`.
    """
    body: Any = model
    most = room(model, prompts, sampling.max_new_tokens)
    asked = GenerationConfig(
        max_new_tokens=most, do_sample=sampling.temperature > 0, temperature=float(sampling.temperature) or None,
        top_k=sampling.top_k, top_p=float(sampling.top_p), repetition_penalty=float(sampling.repetition_penalty),
        suppress_tokens=list(sampling.suppress_tokens) or None, pad_token_id=pad_id,
        eos_token_id=list(sampling.stop_ids) or None,
    )  # fmt: skip
    rows: list[list[int]] = [[] for _ in prompts]
    kept = body.generation_config
    try:
        body.generation_config = asked  # `generate` fills from it what an argument leaves open
        for length in sorted({len(prompt) for prompt in prompts}):  # without padding, which some families do not mask
            places = [place for place, prompt in enumerate(prompts) if len(prompt) == length]
            ids, mask = pad_left([prompts[place] for place in places], pad_id, next(body.parameters()).device)
            with torch.random.fork_rng():
                torch.manual_seed(sampling.seed)
                out = body.generate(ids, attention_mask=mask)[:, length:].tolist()
            for place, row in zip(places, out, strict=True):
                rows[place] = row
    finally:
        body.generation_config = kept
    ends = [next((i + 1 for i, token in enumerate(row) if token in sampling.stop_ids), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]
