"""The options and the YAML of `babygpt`, read before a parser takes one thing in silence for another."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

PARTS = ("run", "data", "model", "trainer")
TEXTS = ("config", "c", *PARTS, "model.config")  # options whose value is a file, or YAML in its place
# Options that may be 007.
NAMES = ("run.folder", "data.corpus", "data.tokenizer", "data.cache", "model.pretrained", "ckpt_path", "prompt")
SAVED = "# pytorch_lightning=="  # how Lightning begins the configuration of a run
PLAIN = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
ODD = re.compile(r"[-+]?(0[0-7_]+|0[xXbBoO][0-9a-fA-F_]+|[1-9][0-9_]*(:[0-5]?[0-9])+)")  # whole numbers, to YAML
MOST_VALUES = 100_000


class Once(yaml.SafeLoader):
    """A loader that refuses what YAML's own takes in silence for something else: a key that stands twice, of which it
    takes the last, and whole numbers that are not decimal (020 is 16 to it, 1:30 is 90)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value != "<<" and str(key.value) in seen:
                raise ValueError(f"{key.value} stands in line {seen[str(key.value)]} and in line {line}; keep one")
            seen[str(key.value)] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        if ":" in node.value:
            raise ValueError(f"{node.value} in line {node.start_mark.line + 1} is no plain decimal number; write one")
        return super().construct_yaml_float(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if not PLAIN.fullmatch(node.value):
            raise ValueError(f"{node.value} in line {node.start_mark.line + 1} is no plain decimal number; write one")
        return super().construct_yaml_int(node)


Once.add_constructor("tag:yaml.org,2002:int", Once.construct_yaml_int)
Once.add_constructor("tag:yaml.org,2002:float", Once.construct_yaml_float)


def check_arguments(arguments: Sequence[str]) -> set[str]:
    """Read each file, or text, that `--config` or the option of a part names, and each number of an option.

    Returns:
        The keys that somebody wrote, such as `data.context`. Those that Lightning saved with a run, all there are, are
        not among them.

    Raises:
        ValueError: for a file that holds no keys, has a key twice, a part (`data`, `model` ...) that is no mapping, a
            number that is not decimal, or a value that holds itself.
    """
    written: set[str] = set()
    for option, value in _options(arguments):
        if option in TEXTS:
            written |= _check_text(value, "" if option in ("config", "c") else option)
        else:
            written.add(option)
            if ODD.fullmatch(value) and option not in NAMES:
                raise ValueError(f"{option}={value} is no plain decimal number; write one")
    return written


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for argument, after in pairwise([*arguments, ""]):
        if argument.startswith("-") and argument.lstrip("-")[:1].isalpha():
            name, equals, value = argument.lstrip("-").partition("=")
            yield name, value if equals else after


def _check_text(given: str, part: str) -> set[str]:
    """The keys of a file, or of YAML that was given in its place; `part` is what they belong to."""
    try:
        is_file = os.path.isfile(given)  # not Path's: a long text is no name of a file, and raises there
        text = Path(given).read_text(encoding="utf-8-sig") if is_file else given
        values = yaml.load(text, Once)
        _refuse_loops(values)
    except (yaml.YAMLError, OSError, RecursionError):
        return set()  # the parser tells it
    except ValueError as error:  # text that is not UTF-8 too
        raise ValueError(f"{given if is_file else '--' + (part or 'config')}: {error}") from error
    if not is_file and not isinstance(values, dict):
        return set()  # a file that is not there: likewise
    name = given if is_file else f"--{part or 'config'}"
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds {type(values).__name__} and no keys; see `babygpt fit --print_config`")
    for each in PARTS if not part else ():
        if each in values and not isinstance(values[each], dict):
            raise ValueError(f"{name}: {each}={values[each]!r} must hold keys; see `babygpt fit --print_config`")
    keys = list(_keys(values, part))
    twice = [key for key, number in Counter(keys).items() if number > 1]
    if twice:  # as `data.context` beside `data: {context: ...}`
        raise ValueError(f"{name}: {twice[0]} is given twice; keep one")
    nested = (
        (values.get("model") or {}).get("config") if not part else values.get("config") if part == "model" else None
    )
    if isinstance(nested, str):
        keys += _check_text(nested, "model.config")
    return set() if text.startswith(SAVED) else set(keys)


def _keys(values: dict[Any, Any], before: str) -> Iterator[str]:
    for key, value in values.items():
        name = f"{before}.{key}" if before else str(key)
        yield name
        if isinstance(value, dict):
            yield from _keys(value, name)


def _refuse_loops(values: Any, above: tuple[int, ...] = (), count: list[int] | None = None) -> None:
    """Raise for a value that holds itself, through an anchor, or for anchors that make millions of one."""
    count = [0] if count is None else count
    count[0] += 1
    if id(values) in above or count[0] > MOST_VALUES:
        raise ValueError("an anchor (&) and its alias (*) hold themselves, or too much; write the values out")
    if isinstance(values, (dict, list)):
        for value in values.values() if isinstance(values, dict) else values:
            _refuse_loops(value, (*above, id(values)), count)
