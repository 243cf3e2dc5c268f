"""Functions of Python's library, to be continued from their first words: right is what Python's parser takes."""

from __future__ import annotations

import ast
import copy
import random
import re
from collections.abc import Iterator

from llm_data.text.parsing import parses, tree_of

from llm_align.tasks.task import Question, drawn

name = "functions"
MOST_CHARACTERS = 300  # of a function: about a hundred tokens of the small model's tokenizer, whose context is 128
LEAST_STATEMENTS = 3
# Where a prompt may end: after the opening parenthesis, or after a parameter's name.
OPENING = re.compile(r"def \w+\((?:\w+(?:, \w+)*)?")
INNER = ("body", "orelse", "finalbody", "handlers", "cases")


def questions(number: int, seed: int = 0) -> list[Question]:
    """Beginnings such as "def read_text(self, encoding", each with the function's own rest.

    Only functions that both rewards take are asked for. The wrong answer is the right one, broken off where it is not
    Python.

    Raises:
        ValueError: when there are fewer.
    """
    from llm_data.text.python_source import read_functions  # brings torch, which a reward does not need

    texts = [text for text in read_functions() if text.startswith("def ") and len(text) <= MOST_CHARACTERS]
    draw = random.Random(seed)
    draw.shuffle(texts)
    found: dict[str, Question] = {}
    for text in texts:
        if len(found) >= number:
            break
        opening = OPENING.match(text)
        if opening:
            ends = [at for at, sign in enumerate(opening[0]) if sign == ","]
            ends += [opening[0].index("(") + 1, opening.end()]
            prompt = text[: draw.choice(ends)]
            rest = text[len(prompt) :]
            if prompt not in found and reward_with_body(prompt, rest) == 1.0:
                found[prompt] = Question(rest, _broken_off(prompt, rest, draw), prompt=prompt)
    return drawn(list(found.values()), number, seed, name)


def reward(prompt: str, answer: str) -> float:
    """1.0 when the prompt with its answer is Python, else 0.0.

    A policy that is trained on it learns the shortest text that parses: `): pass`.
    """
    return float(parses(prompt + answer))


def reward_with_body(prompt: str, answer: str) -> float:
    """1.0 when the prompt with its answer is Python and begins with a function of at least three statements.

    Nested statements count. What does nothing does not: `pass`, docstrings, and constants or names that stand alone.
    Statements that are alike count once, an `if` or a loop by its first line.

    A policy finds the next gap: statements that differ and do nothing all the same, as `a = 1`, `b = 2`, `c = 3`, or
    code after a `return`. No count of statements knows what a function is for; only running it on cases would.
    """
    tree = tree_of(prompt + answer)
    first = tree.body[0] if tree and tree.body else None
    if not isinstance(first, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return 0.0
    try:
        return float(len({ast.dump(each) for each in _statements(first)}) >= LEAST_STATEMENTS)
    except RecursionError:  # an expression that is nested a thousand deep
        return 0.0


def _statements(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.stmt]:
    """Statements inside a function that may do something, each without those inside of it."""
    for node in ast.walk(function):
        if not isinstance(node, ast.stmt) or node is function or isinstance(node, ast.Pass):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Constant, ast.Name)):
            continue
        alone = copy.copy(node)
        for field in INNER:
            if hasattr(alone, field):
                setattr(alone, field, [])
        yield alone


def _broken_off(prompt: str, rest: str, draw: random.Random) -> str:
    end = draw.randint(len(rest) // 2, len(rest) - 1)
    while parses(prompt + rest[:end]):  # ends: the prompt alone is no Python
        end -= 1
    return rest[:end]
