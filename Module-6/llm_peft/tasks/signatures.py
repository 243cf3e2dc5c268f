"""Functions of Python's library, to be described as JSON: a task whose answers can be checked to the letter.

Describe this function as JSON.
def read_text(self, encoding=None, errors=None): ...
                                ->   {"name": "read_text", "parameters": ["self", "encoding", "errors"]}
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from llm_data.whole_files import checksum, is_sealed, seal, write_in_place
from llm_data.workspace import cache_folder, digest, locked

QUESTION = "Describe this function as JSON.\n"
SYSTEM = "You answer with one line of JSON."
MOST_CHARACTERS = 90  # of a signature: a row of 256 tokens then holds three examples
FOLDERS = (
    "asyncio", "collections", "concurrent", "email", "html", "http", "importlib", "json", "logging", "multiprocessing",
    "unittest", "urllib", "xml", "wsgiref", "tkinter", "sqlite3", "",
)  # fmt: skip


@dataclass(frozen=True)
class Signature:
    """One function: its `def` line without a body, and what a right answer says.

    Attributes:
        line: as Python writes it, `def f(a, b=1): ...`.
        name: of the function.
        parameters: names in their order, without stars and defaults.
    """

    line: str
    name: str
    parameters: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The one right answer."""
        return json.dumps({"name": self.name, "parameters": list(self.parameters)})

    @property
    def messages(self) -> list[dict[str, str]]:
        """A conversation that teaches it."""
        return [*self.question, {"role": "assistant", "content": self.answer}]

    @property
    def question(self) -> list[dict[str, str]]:
        """The conversation up to the answer."""
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION + self.line}]


def signatures(number: int, seed: int = 0, root: Path | None = None) -> list[Signature]:
    """Different functions of the library, none with the signature of another, in an order drawn with the seed.

    Raises:
        ValueError: when there are fewer.
    """
    found = _by_line(root or Path(sysconfig.get_path("stdlib")))
    lines = sorted(found)
    if len(lines) < number:
        raise ValueError(f"there are {len(lines):,} functions of that size, and {number:,} were asked for")
    order = np.random.default_rng(seed).permutation(len(lines))[:number]
    return [found[lines[place]] for place in order]


@cache
def _by_line(root: Path) -> dict[str, Signature]:
    """The signatures below a folder. To find them takes some seconds, so the first call leaves them in the course's
    cache, under a name that changes with any of the files."""
    sources = tuple(path for folder in FOLDERS for path in sorted((root / folder).glob("*.py")))
    folder = cache_folder() / "python-signatures"
    path = folder / f"{digest(sys.version, sources, checksum((*sources, Path(__file__))))}.jsonl"
    seal_path = path.with_suffix(".seal")
    if not is_sealed(seal_path):
        with locked(folder):
            if not is_sealed(seal_path):  # another process may have made it meanwhile
                text = "".join(json.dumps(asdict(each)) + "\n" for each in _all(sources))
                write_in_place(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
                seal(seal_path, [path])
    found = map(json.loads, path.read_text("utf-8").splitlines())
    return {each["line"]: Signature(each["line"], each["name"], tuple(each["parameters"])) for each in found}


def _all(sources: Sequence[Path]) -> Iterator[Signature]:
    for path in sources:
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                names = [*given.posonlyargs, *given.args, *filter(None, [given.vararg]), *given.kwonlyargs,
                         *filter(None, [given.kwarg])]  # fmt: skip
                line = f"def {node.name}({ast.unparse(given)}): ..."
                if len(line) <= MOST_CHARACTERS and names:
                    yield Signature(line, node.name, tuple(each.arg for each in names))


def write_examples(path: Path, chosen: Sequence[Signature]) -> None:
    """A `.jsonl` file that teaches these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"messages": each.messages}) + "\n" for each in chosen), "utf-8")


@dataclass(frozen=True)
class Score:
    """Shares of some answers, from 0 to 1.

    Attributes:
        parsed: are JSON with a name and a list of parameters.
        named: have the right name too.
        right: are right altogether.
        ended: came to an end by themselves.
        number: of answers.
    """

    parsed: float
    named: float
    right: float
    ended: float
    number: int

    @property
    def error(self) -> float:
        """Standard error of `right`, of the draw of the questions."""
        return float(np.sqrt(self.right * (1 - self.right) / self.number))


def score(answers: Sequence[tuple[str, bool]], wanted: Sequence[Signature]) -> Score:
    """Compare answers, each with whether it ended, with what was wanted."""
    counts = np.zeros(4)
    for (text, came_to_an_end), signature in zip(answers, wanted, strict=True):
        try:
            said = json.loads(text)
            is_form = isinstance(said, dict) and isinstance(said.get("parameters"), list) and "name" in said
        except (ValueError, RecursionError):
            said, is_form = {}, False
        is_named = is_form and said["name"] == signature.name
        is_right = is_named and said["parameters"] == list(signature.parameters) and len(said) == 2
        counts += (is_form, is_named, is_right, came_to_an_end)
    parsed, named, right, ended = (counts / len(wanted)).tolist()
    return Score(parsed, named, right, ended, len(wanted))
