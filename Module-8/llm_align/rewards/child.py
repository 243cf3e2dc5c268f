"""The process that calls a reward: one JSON line in, one out. It imports what the reward's own module needs, no more.

Started by `scores.py`. It ends when its input does, and, where the system has timers, when a call takes longer than it
may, also if the process that started it is gone by then.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from llm_data.errors import one_line

Reward = Callable[[str, str], float]
GRACE = 1.0  # seconds after which the child ends by itself when nobody has ended it


def value_of(returned: Any) -> tuple[float, str | None]:
    """What a reward returned as a number, with what is wrong with it: a bool is none, nor is NaN or inf."""
    if isinstance(returned, bool) or not isinstance(returned, Real):
        return 0.0, f"returned {_shown(returned)}, a {type(returned).__name__}; return a float"
    try:
        value = float(returned)
    except (OverflowError, ValueError, TypeError):
        value = math.inf
    return (value, None) if math.isfinite(value) else (0.0, f"returned {_shown(returned)}; return a finite number")


def raised(error: BaseException) -> str:
    """One line about an error, also about one whose own text cannot be made."""
    try:
        said = one_line(error)
    except Exception:
        said = "it cannot say what"
    kind = type(error).__name__
    return f"raised {kind}" if said == kind else f"raised {kind}: {said}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        return "something"
    return text if len(text) <= 50 and text.isprintable() else text[:50].encode("unicode_escape").decode() + "..."


def load(spec: str) -> Reward:
    """The function that "package.module:function" or "path/to/file.py:function" names.

    Raises:
        ValueError: when there is none, with what to do.
    """
    place, _, name = spec.rpartition(":")
    path = Path(place).expanduser()
    if path.suffix == ".py" and not path.is_file():
        raise ValueError(f"the reward {spec!r}: there is no file {place}")
    try:
        module = _from_file(path) if path.suffix == ".py" else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise ValueError(f"the reward {spec!r}: importing {place} {raised(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"the reward {spec!r}: {place} has no function {name!r}")
    return function


def _from_file(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.resolve().parent))  # for what lies beside it
    found = importlib.util.spec_from_file_location("reward_file", path)
    assert found is not None and found.loader is not None  # its name ends in .py
    module = sys.modules["reward_file"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def serve(spec: str, seconds: float, memory_bytes: int | None) -> None:
    """Load the reward, say so, and answer each line until there are no more."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    # The function gets an empty input, and what it prints goes where errors go: the two pipes are the protocol's alone.
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    if memory_bytes is not None:
        _limit(memory_bytes)

    def say(value: float, failure: str | None) -> None:
        answers.write(json.dumps([value, failure]) + "\n")
        answers.flush()

    try:
        function = load(spec)
    except ValueError as error:
        say(0.0, str(error))
        return
    say(0.0, None)
    for line in requests:
        prompt, answer = json.loads(line)
        _alarm(seconds + GRACE)
        try:
            said = value_of(function(prompt, answer))
        except BaseException as error:  # SystemExit too: it is the reward's, and no wish of the training's
            said = 0.0, raised(error)
        _alarm(0)
        say(*said)


def _limit(memory_bytes: int) -> None:
    if sys.platform in ("win32", "darwin"):  # the one has no limits, the other does not hold this one
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _alarm(seconds: float) -> None:
    """Have the system end this process then; 0 takes it back. No Python runs for it, so C code is ended too."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
