"""Prompts and pairs of answers, one a line of a `.jsonl` file:

    {"messages": [..., {"role": "user", "content": "..."}]}                   a prompt, written by the chat template
    {"prompt": "..."}                                                         a text to go on from
    {"messages": [...], "chosen": "...", "rejected": "..."}                   a pair of answers, the first preferred
    {"prompt": "...", "chosen": "...", "rejected": "..."}

A prompt and its answers are made into tokens apart: an answer that is learned has the tokens that a model would write.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_core.generate import encode_prompt
from llm_peft.chat.records import lines_of, text_of, turns
from llm_peft.chat.template import prompt_ids, refuse_special_tokens, written
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Prompt:
    """What is answered.

    Attributes:
        ids: tokens, those that ask for an answer included.
        text: what a reward function is told: the last turn's content, or the prompt itself.
    """

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Pair:
    """A prompt with two answers, each with its end token, the first preferred to the second."""

    prompt: Prompt
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def prompt_of(record: Any, tokenizer: PreTrainedTokenizerFast, place: str = "prompt") -> Prompt:
    """A prompt from a JSON object.

    Raises:
        ValueError: when it is none, with the place and the reason.
    """
    messages = _messages(record, place)
    try:
        if messages is None:
            text = text_of(record, "prompt", place)
            refuse_special_tokens(text, tokenizer, place)
            if not (ids := encode_prompt(tokenizer, text)):
                raise ValueError(f"{place}: a prompt is empty; give at least one token to begin with")
            return Prompt(tuple(ids), text)
        return Prompt(tuple(prompt_ids(messages, tokenizer)), messages[-1]["content"])
    except ValueError as error:
        raise _with_place(error, place) from error


def pair_of(record: Any, tokenizer: PreTrainedTokenizerFast, place: str = "pair") -> Pair:
    """A pair from a JSON object.

    Raises:
        ValueError: when it is none, with the place and the reason.
    """
    prompt = prompt_of(record, tokenizer, place)
    answers = {name: text_of(record, name, place) for name in ("chosen", "rejected")}
    if answers["chosen"] == answers["rejected"]:
        raise ValueError(f"{place}: chosen and rejected are the same text, so there is nothing to learn")
    messages = _messages(record, place)
    ids = {name: answer_ids(text, tokenizer, messages, f"{place}, {name}") for name, text in answers.items()}
    return Pair(prompt, ids["chosen"], ids["rejected"])


def answer_ids(
    text: str, tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]] | None, place: str = "answer"
) -> tuple[int, ...]:
    """The tokens of an answer up to its end token.

    Args:
        text: the answer.
        tokenizer: of the model.
        messages: of the conversation that it answers; None for a plain prompt.
        place: for the errors.

    Raises:
        ValueError: for a text with a special token in it, and where nothing would end it.
    """
    refuse_special_tokens(text, tokenizer, place)
    end = tokenizer.eos_token
    if end is None:
        raise ValueError(f"{place}: the tokenizer has no end-of-text token, so that no answer would end")
    if messages is None:
        return (*tokenizer(text, add_special_tokens=False)["input_ids"], int(tokenizer.eos_token_id))
    asked = written(messages, tokenizer, place, add_generation_prompt=True)
    answered = written([*messages, {"role": "assistant", "content": text}], tokenizer, place)
    said = answered.removeprefix(asked)
    if not answered.startswith(asked) or end not in said:
        raise ValueError(f"{place}: the chat template does not write an answer behind its prompt, ended by {end!r}")
    return tuple(tokenizer(said[: said.rindex(end)] + end, add_special_tokens=False)["input_ids"])


def read_prompts(path: Path | str, tokenizer: PreTrainedTokenizerFast) -> list[Prompt]:
    """The prompts of a file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a line that is none, with its number and why, and for a file without any.
    """
    return [prompt_of(record, tokenizer, place) for place, record in lines_of(path, "prompts")]


def read_pairs(path: Path | str, tokenizer: PreTrainedTokenizerFast) -> list[Pair]:
    """The pairs of a file; errors as `read_prompts`."""
    return [pair_of(record, tokenizer, place) for place, record in lines_of(path, "pairs")]


def _messages(record: Any, place: str) -> list[dict[str, str]] | None:
    """The turns of a record; None for a plain prompt."""
    if not isinstance(record, dict):
        raise ValueError(f"{place}: expected a JSON object, not a {type(record).__name__}")
    forms = [form for form in ("messages", "prompt") if form in record]
    if len(forms) != 1:
        found = " and ".join(forms) if forms else ", ".join(map(str, list(record)[:5])) or "nothing"
        raise ValueError(f"{place}: expected one of messages and prompt; it has {found}")
    if forms == ["prompt"]:
        return None
    found_turns = [dict(turn) for turn in turns(record["messages"], place)]
    if found_turns[-1]["role"] == "assistant":
        raise ValueError(f"{place}: the last turn is the assistant's, so there is nothing to answer; leave it out")
    return found_turns


def _with_place(error: ValueError, place: str) -> ValueError:
    return error if str(error).startswith(place) else ValueError(f"{place}: {error}")
