"""From a docstring to a signature: the `def` line of a function of Python's library, checked against the library."""

from __future__ import annotations

import ast
import re
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from llm_data.text.parsing import tree_of

from llm_align.tasks.task import Question, drawn, foreign

name = "signatures"
SYSTEM = "You answer with one line of Python."
QUESTION = "Write the def line of the function of Python's module {module} with this docstring:\n{line}"
PROMPT = re.compile(re.escape(QUESTION).replace(r"\{module\}", r"(\w+(?:\.\w+)*)").replace(r"\{line\}", "(.+)"))
LEAST_LINE, MOST_LINE = 20, 100  # characters of a docstring's first line
MOST_CHARACTERS = 90  # of a `def` line
MOST_ANSWER = 1000  # characters; a longer answer is no `def` line of the library
Parameters = tuple[tuple[str, str], ...]  # kind and name of each


def questions(number: int, seed: int = 0) -> list[Question]:
    """Conversations with a system turn. The wrong answer has a parameter too few, or one too many where there is none.

    The first call of a process reads the whole library, which takes some seconds.

    Raises:
        ValueError: when there are fewer.
    """
    found = []
    for module, line in drawn(_all(), number, seed, name):
        function = _by_line(module)[line]
        answer = f"def {function.name}({ast.unparse(function.args)}):"
        parts = [{"*": "*", "**": "**"}.get(kind, "") + each for kind, each in _parameters(function)]
        wrong = f"def {function.name}({', '.join(parts[:-1] if parts else ['value'])}):"
        turns = (
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": QUESTION.format(module=module, line=line)},
        )
        found.append(Question(answer, wrong, messages=turns))
    return found


def reward(prompt: str, answer: str) -> float:
    """1.0 for the right name and parameters, with their kinds and order; for the right name alone, half the share of
    names that both lists of parameters have (Jaccard); else 0.0.

    Defaults and annotations are free. The answer is one line, and is parsed, never executed.

    Raises:
        ValueError: when the prompt is none of the task's, or the library has no such docstring.
    """
    match = PROMPT.fullmatch(prompt)
    right = _by_line(match[1]).get(match[2]) if match else None
    if right is None:
        raise foreign(name, prompt)
    said = _function(answer)
    if said is None or said.name != right.name:
        return 0.0
    given, wanted = _parameters(said), _parameters(right)
    if given == wanted:
        return 1.0
    names = [{each for _, each in parameters} for parameters in (given, wanted)]
    return 0.5 * len(names[0] & names[1]) / len(names[0] | names[1]) if names[0] | names[1] else 0.0


def _function(answer: str) -> ast.FunctionDef | None:
    """The function of a `def` line that may end with its colon or with a body of `...` or `pass`."""
    line = answer.strip()
    if "\n" in line or "\r" in line or len(line) > MOST_ANSWER:
        return None
    tree = tree_of(line + " ..." if line.endswith(":") else line)
    function = tree.body[0] if tree and tree.body else None
    return function if isinstance(function, ast.FunctionDef) else None


def _parameters(function: ast.FunctionDef) -> Parameters:
    given = function.args
    kinds = (
        ("positional only", given.posonlyargs), ("any", given.args), ("*", [given.vararg]),
        ("keyword only", given.kwonlyargs), ("**", [given.kwarg]),
    )  # fmt: skip
    return tuple((kind, each.arg) for kind, parameters in kinds for each in parameters if each is not None)


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


@cache
def _by_line(module: str) -> dict[str, ast.FunctionDef]:
    """Functions of a module by the first line of their docstring, where no other has the same."""
    path = _library().joinpath(*module.split("."))
    found = list(_documented(path / "__init__.py" if path.is_dir() else path.with_suffix(".py")))
    times = Counter(line for line, _ in found)
    for _, function in found:
        function.body = []  # of no use here, and most of the memory
    return {line: function for line, function in found if times[line] == 1}


def _documented(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    try:
        with tokenize.open(path) as file:
            tree = tree_of(file.read())
    except (OSError, SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            line = docstring.splitlines()[0].strip()
            if LEAST_LINE <= len(line) <= MOST_LINE and line.isprintable():
                yield line, node


@cache
def _all() -> tuple[tuple[str, str], ...]:
    """Module and line of each function whose `def` line is short enough, sorted."""
    from lightning_basics.data import source_files  # brings torch, which a reward does not need

    found = []
    for path in source_files(_library()):
        parts = path.relative_to(_library()).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if PROMPT.fullmatch(QUESTION.format(module=module, line="line")):
            for line, function in _by_line(module).items():
                if len(f"def {function.name}({ast.unparse(function.args)}):") <= MOST_CHARACTERS:
                    found.append((module, line))
    return tuple(sorted(found))
