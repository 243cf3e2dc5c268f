"""From an example to token ids, and to labels that say which of them are learned.

A conversation is written out by the tokenizer's own chat template. The targets are what the assistant says, its end of
turn among them: a model that never sees the end as a target never learns to stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_data.rows.documents import IGNORE_INDEX
from llm_data.tokenizers.fast import begin_ids
from transformers import PreTrainedTokenizerBase

from llm_peft.chat.records import Example


@dataclass(frozen=True)
class Encoded:
    """An example as tokens.

    Attributes:
        ids: all of it.
        labels: the same where a token is a target, else `IGNORE_INDEX`; the model shifts them.
    """

    ids: list[int]
    labels: list[int]


def encode(example: Example, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """The tokens of an example.

    Raises:
        ValueError: when a text has a special token in it, the tokenizer has no chat template or one that this cannot
            follow, or no answer has an end.
    """
    if not example.messages:
        return _encode_completion(example, tokenizer)
    if tokenizer.chat_template is None:
        wrong = f"{example.place}: the tokenizer has no chat template to write messages with"
        raise ValueError(f"{wrong}; take a model that was trained on chats, or give prompt and completion")
    for number, message in enumerate(example.messages):
        refuse_special_tokens(message["content"], tokenizer, f"{example.place}, turn {number}")
    text, spans = write_out(example, tokenizer)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
    labels = [IGNORE_INDEX] * len(ids)
    for start, end in spans:
        answer = [place for place, (first, last) in enumerate(offsets) if first >= start and last <= end]
        ends = [place for place in answer if ids[place] == tokenizer.eos_token_id]
        if not ends:
            raise ValueError(
                f"{example.place}: the chat template ends no answer with {tokenizer.eos_token!r}, so the model would "
                "never learn to stop; set the tokenizer's eos_token to what ends a turn"
            )
        for place in answer:
            if place <= ends[-1]:  # a line break behind the end is never asked of the model
                labels[place] = ids[place]
    return Encoded(ids, labels)


def write_out(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as the template writes it, and where in that text the assistant's answers begin and end.

    An answer is what a template adds when the assistant's turn is given, beyond what it writes to ask for one.

    Raises:
        ValueError: for a template that writes earlier turns otherwise when there are later ones.
    """
    messages = list(example.messages)
    text = written(messages, tokenizer, example.place)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = written(messages[:number], tokenizer, example.place, add_generation_prompt=True)
        answered = written(messages[: number + 1], tokenizer, example.place)
        if not answered.startswith(asked) or not text.startswith(answered):
            wrong = f"{example.place}: the chat template writes turn {number} otherwise when others follow"
            raise ValueError(f"{wrong}; give each answer an example of its own, as prompt and completion")
        spans.append((len(asked), len(answered)))
    return text, spans


def prompt_ids(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that ask a model for the assistant's next turn.

    Raises:
        ValueError: when the tokenizer has no chat template, or a text has a special token in it.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template; take a model that was trained on chats")
    for message in messages:
        refuse_special_tokens(message["content"], tokenizer, f"the {message['role']}'s turn")
    text = written(messages, tokenizer, "the chat", add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def written(messages: list[Any], tokenizer: PreTrainedTokenizerBase, place: str, **options: Any) -> str:
    """A conversation as the template writes it.

    Raises:
        ValueError: when it refuses.
    """
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # templates raise what they like, as for a system turn where there is none
        raise ValueError(f"{place}: the chat template refuses it ({error})") from error


def _encode_completion(example: Example, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Prompt and completion one after the other, with an end-of-text token behind; a plain text has no prompt."""
    for text in (example.prompt, example.completion):
        refuse_special_tokens(text, tokenizer, example.place)
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token, so the model would never learn to stop")
    prompt = [*begin_ids(tokenizer), *tokenizer(example.prompt, add_special_tokens=False)["input_ids"]]
    completion = [*tokenizer(example.completion, add_special_tokens=False)["input_ids"], int(tokenizer.eos_token_id)]
    return Encoded(prompt + completion, [IGNORE_INDEX] * len(prompt) + completion)


def refuse_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Raise a ValueError for a text that would end a turn, or begin one, from the inside."""
    # `all_special_tokens` names those with a role (begin, end, pad); a vocabulary may hold more.
    added = [str(each) for each in tokenizer.added_tokens_decoder.values() if each.special]
    for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]):
        if token in text:
            raise ValueError(f"{place}: it holds the special token {token!r}; write it otherwise")
