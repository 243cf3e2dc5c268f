"""`local-lora chat`: a conversation in the terminal, written word by word as the model finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from llm_core.foreign import max_positions
from llm_core.generate import stop_ids
from torch import nn
from transformers import PreTrainedTokenizerBase, TextStreamer

from llm_peft.chat.template import prompt_ids


@torch.no_grad()
def answer(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], max_new_tokens: int = 200,
    temperature: float = 0.0, seed: int = 0, write: Callable[[str], Any] | None = None,
) -> tuple[str, bool]:  # fmt: skip
    """What the model says next in a conversation, and whether it came to an end by itself.

    Args:
        model: of transformers, in evaluation mode.
        tokenizer: with a chat template.
        messages: turns so far, the user's last.
        max_new_tokens: the most that it may say.
        temperature: 0 takes the likeliest token each time.
        seed: of the draws.
        write: is given the text piece by piece, while it is found.

    Raises:
        ValueError: when the conversation leaves no room for an answer.
    """
    body: Any = model
    ids = torch.tensor([prompt_ids(messages, tokenizer)], device=next(model.parameters()).device)
    room = (max_positions(body.config) or 2**31) - ids.shape[1]
    if room < 1:
        raise ValueError(f"the conversation has {ids.shape[1]} tokens, and the model no place for more; begin anew")
    ends = sorted({*stop_ids(model), int(tokenizer.eos_token_id)})
    options: dict[str, Any] = {"do_sample": temperature > 0, "temperature": temperature or None}
    if write is not None:
        options["streamer"] = _Streamer(tokenizer, write)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = body.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=min(max_new_tokens, room), eos_token_id=ends,
            pad_token_id=ends[0], top_p=None, top_k=None, **options,
        )[0, ids.shape[1] :]  # fmt: skip
    ended = bool(len(out)) and int(out[-1]) in ends
    return str(tokenizer.decode(out, skip_special_tokens=True)).strip(), ended


class _Streamer(TextStreamer):
    """Gives finished pieces of text to a function."""

    def __init__(self, tokenizer: Any, write: Callable[[str], Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._write(text)


def converse(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: Iterator[str], write: Callable[[str], Any],
    system: str = "", **options: Any,
) -> None:  # fmt: skip
    """Answer questions one after the other, each with those before it in view.

    An empty question begins a new conversation.
    """
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    for question in questions:
        if not question.strip():
            messages = list(start)
            write("(a new conversation)\n")
            continue
        messages.append({"role": "user", "content": question.strip()})
        said, ended = answer(model, tokenizer, messages, write=write, **options)
        write("\n" if ended else " ...\n")
        messages.append({"role": "assistant", "content": said})


@torch.no_grad()
def answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, conversations: list[list[dict[str, str]]],
    max_new_tokens: int = 60, batch_size: int = 12,
) -> list[tuple[str, bool]]:  # fmt: skip
    """The likeliest next turn of many conversations, several at a time, and whether each came to an end by itself."""
    from llm_core.generate import Sampling, generate_by_transformers

    ends = tuple(sorted({*stop_ids(model), int(tokenizer.eos_token_id)}))
    prompts = [prompt_ids(messages, tokenizer) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: list[tuple[str, bool]] = [("", False)] * len(prompts)
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0, stop_ids=ends)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        rows = generate_by_transformers(model, [prompts[place] for place in places], sampling, ends[0])
        for place, row in zip(places, rows, strict=True):
            text = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
            found[place] = text, bool(row) and row[-1] in ends
    return found
