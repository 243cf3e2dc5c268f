"""Sums with units, in a dozen forms. A right answer is one number with its unit: "205 minutes"."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from llm_align.tasks.task import Question, drawn, foreign

name = "arithmetic"
END = " Answer with the number and its unit."
# The first word of each is the one that answers are written with.
UNITS = {
    "seconds": "seconds second sec s", "minutes": "minutes minute min", "hours": "hours hour h",
    "days": "days day", "weeks": "weeks week",
    "millimetres": "millimetres millimetre millimeters millimeter mm",
    "centimetres": "centimetres centimetre centimeters centimeter cm", "metres": "metres metre meters meter m",
    "kilometres": "kilometres kilometre kilometers kilometer km",
    "grams": "grams gram g", "kilograms": "kilograms kilogram kg",
    "millilitres": "millilitres millilitre milliliters milliliter ml", "litres": "litres litre liters liter l",
    "cents": "cents cent", "euros": "euros euro eur",
}  # fmt: skip
UNIT_OF = {word: unit for unit, words in UNITS.items() for word in words.split()}
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
MOST_DIGITS = 20  # a longer number is right nowhere, and slow to read


@dataclass(frozen=True)
class Form:
    """A kind of question.

    Attributes:
        text: with {a} and {b}.
        right: the answer's number, from a and b.
        slip: what someone gets who makes the mistake of the form.
        unit: of the answer.
        other: a unit that someone might write instead.
        a, b: ranges of the two numbers.
    """

    text: str
    right: Callable[[int, int], int]
    slip: Callable[[int, int], int]
    unit: str
    other: str
    a: range
    b: range


def _converted(text: str, factor: int, unit: str, other: str, a: range, b: range) -> Form:
    """A large unit and a small one, added; the slip takes another factor: 100 in place of 60, and 10 in place of
    others."""
    slip = 100 if factor == 60 else 10
    return Form(text, lambda m, n: factor * m + n, lambda m, n: slip * m + n, unit, other, a, b)


def _times(text: str, unit: str, other: str, a: range, b: range) -> Form:
    """A product; the slip adds."""
    return Form(text, lambda m, n: m * n, lambda m, n: m + n, unit, other, a, b)


FORMS = (
    _converted("A train needs {a} hours and {b} minutes. How many minutes is that?", 60, "minutes", "hours",
               range(2, 20), range(1, 60)),
    _converted("A song lasts {a} minutes and {b} seconds. How many seconds is that?", 60, "seconds", "minutes",
               range(2, 20), range(1, 60)),
    _converted("A repair takes {a} days and {b} hours. How many hours is that?", 24, "hours", "days",
               range(2, 40), range(1, 24)),
    _converted("A holiday lasts {a} weeks and {b} days. How many days is that?", 7, "days", "weeks",
               range(2, 100), range(1, 7)),
    _converted("A shelf is {a} metres and {b} centimetres long. How many centimetres is that?", 100, "centimetres",
               "metres", range(2, 14), range(1, 100)),
    _converted("A path is {a} kilometres and {b} metres long. How many metres is that?", 1000, "metres", "kilometres",
               range(2, 40), range(50, 1000, 50)),
    _converted("A parcel weighs {a} kilograms and {b} grams. How many grams is that?", 1000, "grams", "kilograms",
               range(2, 40), range(50, 1000, 50)),
    _converted("A jug holds {a} litres and {b} millilitres. How many millilitres is that?", 1000, "millilitres",
               "litres", range(2, 40), range(50, 1000, 50)),
    _converted("A book costs {a} euros and {b} cents. How many cents is that?", 100, "cents", "euros",
               range(2, 40), range(5, 100, 5)),
    Form("A rope is {a} metres long, and {b} centimetres are cut off. How many centimetres are left?",
         lambda m, n: 100 * m - n, lambda m, n: 100 * m + n, "centimetres", "metres", range(2, 14), range(1, 100)),
    _times("A pen costs {a} cents. How many cents do {b} pens cost?", "cents", "euros", range(15, 95), range(3, 13)),
    _times("A bag of rice weighs {a} grams. How many grams do {b} bags weigh?", "grams", "kilograms",
           range(150, 950, 10), range(3, 13)),
    _times("A car drives {a} kilometres in each hour. How many kilometres does it drive in {b} hours?", "kilometres",
           "hours", range(31, 111), range(3, 13)),
)  # fmt: skip
PATTERNS = [
    re.compile(re.escape(form.text + END).replace(r"\{a\}", "([0-9]{1,6})").replace(r"\{b\}", "([0-9]{1,6})"))
    for form in FORMS
]


def questions(number: int, seed: int = 0) -> list[Question]:
    """Conversations of one turn. The wrong answer has the form's own mistake, or the wrong unit.

    Raises:
        ValueError: when there are fewer.
    """
    draw = random.Random(seed)
    found = []
    possible = [(form, a, b) for form in FORMS for a in form.a for b in form.b]
    for form, a, b in drawn(possible, number, seed, name):
        right = form.right(a, b)
        wrong = draw.choice((f"{form.slip(a, b)} {form.unit}", f"{right} {form.other}"))
        turn = {"role": "user", "content": form.text.format(a=a, b=b) + END}
        found.append(Question(f"{right} {form.unit}", wrong, messages=(turn,)))
    return found


def reward(prompt: str, answer: str) -> float:
    """1.0 for the right number with its unit, 0.5 for the right number alone or with another unit, else 0.0.

    An answer with more than one number gets nothing: it would be right by listing many. The unit stands directly after
    the number, and is the only unit in the answer, for the same reason. A text of any length around them costs nothing.

    Raises:
        ValueError: when the prompt is none of the task's.
    """
    form, right = _asked(prompt)
    numbers = list(NUMBER.finditer(answer))
    others = any(sign.isnumeric() and not sign.isdecimal() for sign in answer)  # "½", "²": numbers too
    if len(numbers) != 1 or others or len(numbers[0][0]) > MOST_DIGITS:
        return 0.0
    if Decimal(numbers[0][0].replace(",", "")) != right:
        return 0.0
    units = [UNIT_OF[word] for word in re.findall(r"[^\W\d_]+", answer.lower()) if word in UNIT_OF]
    following = re.match(r"\s*([^\W\d_]*)", answer[numbers[0].end() :].lower())
    is_right = units == [form.unit] and following is not None and UNIT_OF.get(following[1]) == form.unit
    return 1.0 if is_right else 0.5


def _asked(prompt: str) -> tuple[Form, int]:
    for form, pattern in zip(FORMS, PATTERNS, strict=True):
        if match := pattern.fullmatch(prompt):
            return form, form.right(int(match[1]), int(match[2]))
    raise foreign(name, prompt)
