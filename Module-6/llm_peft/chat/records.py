"""Examples to fine-tune on, one a line of a `.jsonl` file, in three forms:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"prompt": "...", "completion": "..."}
    {"text": "..."}

Of the first the assistant's turns are learned, of the second the completion, of the third everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_data.text.json_lines import DECODER

ROLES = ("system", "user", "assistant")
FORMS = ("messages", "prompt", "text")
MOST_BYTES = 2**31  # all examples are held in memory


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        messages: turns of a conversation, each with `role` and `content`; empty for the other forms.
        prompt: what is read and not learned; empty for a plain text.
        completion: what is learned.
        place: file and line, for the errors.
    """

    messages: tuple[Mapping[str, str], ...] = ()
    prompt: str = ""
    completion: str = ""
    place: str = "example"


def example(record: Any, place: str = "example") -> Example:
    """An example from a JSON object.

    Raises:
        ValueError: when it is none, with the place and the reason.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{place}: expected a JSON object, not a {type(record).__name__}")
    forms = [form for form in FORMS if form in record]
    if len(forms) != 1:
        found = " and ".join(forms) if forms else ", ".join(map(str, list(record)[:5])) or "nothing"
        raise ValueError(f"{place}: expected one of messages, prompt with completion, or text; it has {found}")
    if forms == ["messages"]:
        return Example(messages=_checked(record["messages"], place), place=place)
    if forms == ["prompt"]:
        prompt, completion = text_of(record, "prompt", place), text_of(record, "completion", place)
        if not completion:
            raise ValueError(f"{place}: its completion is empty, so there is nothing to learn")
        return Example(prompt=prompt, completion=completion, place=place)
    text = text_of(record, "text", place)
    if not text:
        raise ValueError(f"{place}: its text is empty, so there is nothing to learn")
    return Example(completion=text, place=place)


def read_examples(path: Path | str) -> list[Example]:
    """The examples of a `.jsonl` file; empty lines are passed over.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a line that is none, with its number and why, and for a file without any.
    """
    return [example(record, place) for place, record in lines_of(path)]


def lines_of(path: Path | str, kind: str = "examples") -> Iterator[tuple[str, Any]]:
    """File with line number, and JSON value, of each line that is not empty.

    Args:
        path: of a `.jsonl` file.
        kind: what the lines are, for the errors.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a line that is no JSON, with its number and why, and for a file without any.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a .jsonl file of {kind}")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size / 2**30:.1f} GiB, and {kind} are held in memory; split it")
    found = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                record = DECODER.decode(text) if text else None
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
            except RecursionError as error:
                raise ValueError(f"{place}: its JSON is nested too deep") from error
            except ValueError as error:
                raise ValueError(f"{place}: this is no JSON object ({error})") from error
            if text:
                found = True
                yield place, record
    if not found:
        raise ValueError(f"{path} has no {kind}; write one JSON object a line")


def text_of(record: Mapping[str, Any], key: str, place: str) -> str:
    """The string under a key.

    Raises:
        ValueError: when there is none, or one that is no text.
    """
    value = record.get(key)
    if not isinstance(value, str):
        what = "is missing" if key not in record else f"is a {type(value).__name__}"
        raise ValueError(f"{place}: its {key} {what}, and must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: its {key} has half a surrogate pair, no character") from None
    return value


def turns(messages: Any, place: str) -> tuple[Mapping[str, str], ...]:
    """The turns of a conversation, each with role and content and nothing else.

    Raises:
        ValueError: when they are none.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"{place}: messages must be a list of turns, and not empty")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"{place}: turn {number} is a {type(message).__name__}; expected role and content")
        if message.get("role") not in ROLES:
            raise ValueError(f"{place}: turn {number} has the role {message.get('role')!r}, none of {', '.join(ROLES)}")
        text_of(message, "content", f"{place}, turn {number}")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _checked(messages: Any, place: str) -> tuple[Mapping[str, str], ...]:
    found = turns(messages, place)
    if not any(message["role"] == "assistant" for message in found):
        raise ValueError(f"{place}: no turn is the assistant's, so there is nothing to learn")
    for number, message in enumerate(found):
        if message["role"] == "assistant" and not message["content"].strip():
            raise ValueError(f"{place}: turn {number}, the assistant's, is empty; leave the example out")
    return found
