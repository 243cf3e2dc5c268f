"""One line of a `.jsonl` file: the text of its object, or one line that says why there is none."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from llm_data.text.search import CorpusError


def text_of(line: str, place: str) -> str:
    """The string under `"text"` of the JSON object in `line`.

    Args:
        line: one line of a file.
        place: file and line number, for the errors.

    Raises:
        CorpusError: when the line is no such object. JSON is taken as its standard has it: no NaN, no key twice.
    """
    try:
        record = DECODER.decode(line)
    except RecursionError:
        reason = "this one is nested too deep"
    except ValueError as error:
        # Python's own words for a number of 4,300 digits and more say what to set in Python, which helps nobody here.
        digits = "integer string conversion" in str(error)
        reason = "this one has a number of thousands of digits" if digits else f"this is none ({error})"
    else:
        if isinstance(record, dict) and isinstance(record.get("text"), str):
            text: str = record["text"]
            try:
                text.encode()
            except UnicodeEncodeError:
                raise CorpusError(f'{place}: its "text" has half a surrogate pair, no character') from None
            return text
        reason = _what_it_is(record)
    raise CorpusError(f'{place}: expected a JSON object with a string under "text"; {reason}')


def _what_it_is(record: Any) -> str:
    if not isinstance(record, dict):
        return "this is an array" if isinstance(record, list) else f"this is a {_word(record)}"
    if "text" not in record:
        return f"this one has {', '.join(map(repr, sorted(record)[:5]))}"[:200] if record else "this one is empty"
    return f'under "text" it has a {_word(record["text"])}'


def _word(value: Any) -> str:
    words = {str: "string", bool: "boolean", type(None): "null", dict: "object", list: "list"}
    return words.get(type(value), "number")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:100]!r} stands in it twice")
    return record


# Made once: `json.loads` with options makes one for each line, which costs as much as the parsing.
DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_distinct)
