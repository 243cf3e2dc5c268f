"""A sentence, to be put into a JSON object of a given form: the object alone, with the right keys, types and values."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_data.text.json_lines import DECODER

from llm_align.tasks.task import Question, drawn, foreign

name = "strict_json"
SYSTEM = "You answer with one JSON object and nothing else."
QUESTION = "Write this sentence as a JSON object with the keys {keys}.\n{sentence}"
TYPES = {str: "string", int: "integer", float: "number", bool: "true or false"}
PEOPLE = ("Anna", "Bruno", "Chidi", "Daniela", "Emre", "Farah", "Goran", "Hana", "Ivo", "Jun", "Katya", "Luis")
CITIES = ("Oslo", "Lima", "Cairo", "Hanoi", "Porto", "Quito", "Riga", "Seoul", "Tunis", "Vienna")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
THINGS = ("lamps", "chairs", "pencils", "cups", "plates", "books", "shirts", "keys")


@dataclass(frozen=True)
class Form:
    """A kind of sentence.

    Attributes:
        sentence: with each key in braces.
        values: of each key, all of one type; a bool's are said in `words`.
        words: what stands in the sentence for False and for True.
    """

    sentence: str
    values: Mapping[str, tuple[Any, ...]]
    words: tuple[str, str] = ("", "")

    @property
    def types(self) -> dict[str, type]:
        """Of each key."""
        return {key: type(values[0]) for key, values in self.values.items()}

    @property
    def question(self) -> str:
        """The user's turn, still with each key in braces."""
        keys = ", ".join(f'"{key}" ({TYPES[kind]})' for key, kind in self.types.items())
        return QUESTION.format(keys=keys, sentence=self.sentence)

    def said(self, value: Any) -> str:
        """A value as it stands in the sentence."""
        return self.words[value] if isinstance(value, bool) else str(value)


FORMS = (
    Form("{name} is {age} years old and lives in {city}.",
         {"name": PEOPLE, "age": tuple(range(18, 78, 3)), "city": CITIES}),
    Form("{buyer} bought {count} {item} for {price} euros each.",
         {"buyer": PEOPLE, "count": (2, 3, 4, 5, 6, 8), "item": THINGS, "price": (1.5, 2.25, 4.75, 9.9)}),
    Form("On {day} {host} holds a meeting of {minutes} minutes {online}.",
         {"day": DAYS, "host": PEOPLE, "minutes": (15, 20, 25, 30, 40, 45, 50, 60, 75, 90), "online": (False, True)},
         ("in the office", "online")),
    Form("It is {temperature} degrees in {city}, and it {rain}.",
         {"temperature": tuple(half / 2 for half in range(-19, 61, 2)), "city": CITIES, "rain": (False, True)},
         ("is dry", "rains")),
    Form("The train to {city} leaves from platform {platform} on {day} and {direct}.",
         {"city": CITIES, "platform": tuple(range(1, 13)), "day": DAYS, "direct": (False, True)},
         ("has a change", "goes through")),
)  # fmt: skip
PATTERNS = [re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(form.question))) for form in FORMS]


def questions(number: int, seed: int = 0) -> list[Question]:
    """Conversations with a system turn. The wrong answer has a wrong value, type or key, or text after the object.

    Raises:
        ValueError: when there are fewer.
    """
    possible = [(form, values) for form in FORMS for values in itertools.product(*form.values.values())]
    draw = random.Random(seed)
    found = []
    for form, values in drawn(possible, number, seed, name):
        right = dict(zip(form.values, values, strict=True))
        content = form.question
        for key, value in right.items():
            content = content.replace(f"{{{key}}}", form.said(value))
        turns = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": content})
        found.append(Question(json.dumps(right), _wrong(form, right, draw), messages=turns))
    return found


def reward(prompt: str, answer: str) -> float:
    """1.0 for the right object, 0.5 for the right keys and types, 0.2 for any JSON object, else 0.0.

    JSON is taken as its standard has it: a key twice, NaN, or text beside the object gets nothing. The order of the
    keys is free. A policy that copies the keys and invents the values has half, so watch the share of full marks.

    Raises:
        ValueError: when the prompt is none of the task's.
    """
    form, right = _asked(prompt)
    try:
        said = DECODER.decode(answer)
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(said, dict):
        return 0.0
    if said.keys() != right.keys() or not all(_is_a(said[key], kind) for key, kind in form.types.items()):
        return 0.2
    return 1.0 if said == right else 0.5


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value of JSON has a type; True is no integer, and an integer is a number."""
    if kind is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is kind


def _asked(prompt: str) -> tuple[Form, dict[str, Any]]:
    for form, pattern in zip(FORMS, PATTERNS, strict=True):
        if match := pattern.fullmatch(prompt):
            found = {
                key: next((value for value in values if form.said(value) == match[key]), None)
                for key, values in form.values.items()
            }
            if None not in found.values():
                return form, found
    raise foreign(name, prompt)


def _wrong(form: Form, right: Mapping[str, Any], draw: random.Random) -> str:
    key = draw.choice(list(right))
    others = [value for value in form.values[key] if value != right[key]]
    changed = {**right, key: draw.choice(others)}
    renamed = {other + ("_value" if other == key else ""): value for other, value in right.items()}
    quoted = {other: value if isinstance(value, str) else str(value) for other, value in right.items()}
    return draw.choice((json.dumps(changed), json.dumps(renamed), json.dumps(quoted), json.dumps(right) + "\nDone."))
