"""Rewards of many answers: each a number, or a failure with its reason, and never an end of the training."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from llm_align.rewards.child import Reward, raised, value_of
from llm_align.rewards.process import Late, Process, Score
from llm_align.tasks.named import NAMES

MEMORY_BYTES = 4 * 2**30


class Rewards:
    """Call a reward for each of many answers.

    A reward that raises, takes too long, crashes, or returns anything but a finite number is a failure, with value 0.0.

    Args:
        function: how it is called depends on what it is.
            A function `(prompt, answer) -> number` is called in this process. A call that takes too long is
            interrupted only in the main thread of a system with timers (not Windows), and only between two steps of
            Python: C code that does not return, such as a regular expression that tries every way, stops the training,
            and so does code that catches everything. A crash of it ends the training.
            A string names a function that is called in a process of its own: a task's name ("arithmetic"),
            "package.module:function" or "path/to/file.py:function". That process is kept from call to call, killed
            when a call takes too long, whatever it does, and started anew after that and after each crash. What the
            function prints goes to this process's error output.
        seconds: that one call may take.
        memory_bytes: address space of the process, where the system limits it (not Windows; macOS ignores it); None
            for no limit. A reward that imports torch for a GPU needs more than the default or None.

    The process is no sandbox: the reward's code has this user's rights. It is to read answers, not to execute them;
    see `llm_align.rewards.sandbox` for that.

    Raises:
        ValueError: when a string names no function, or a limit is not above 0.
    """

    def __init__(self, function: Reward | str, seconds: float = 1.0, memory_bytes: int | None = MEMORY_BYTES) -> None:
        if not seconds > 0 or (memory_bytes is not None and memory_bytes <= 0):
            raise ValueError(f"seconds={seconds}, memory_bytes={memory_bytes}: limits of a reward are above 0")
        self._seconds, self._memory = seconds, memory_bytes
        self._lock = threading.Lock()  # one question at a time
        self._process: Process | None = None
        self._function: Reward | None = None
        if isinstance(function, str):
            self._spec = _full(function)
            self._process = Process(self._spec, seconds, memory_bytes)
        elif callable(function):
            self._function = function
        else:
            raise ValueError(f"a reward is a function or a string that names one, not a {type(function).__name__}")

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Score]:
        """A score for each prompt with its answer, in their order.

        Raises:
            ValueError: when there are not as many answers as prompts.
        """
        if len(prompts) != len(answers):
            raise ValueError(f"{len(prompts)} prompts and {len(answers)} answers; each answer needs its prompt")
        with self._lock:
            one = self._asked if self._function is None else self._called
            return [one(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def close(self) -> None:
        """End the process, if there is one. A later call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _called(self, prompt: str, answer: str) -> Score:
        function = self._function
        assert function is not None
        try:
            return Score(*value_of(_timed(lambda: function(prompt, answer), self._seconds)))
        except Late:
            return Score(0.0, _late(self._seconds))
        except (Exception, SystemExit) as error:
            return Score(0.0, raised(error))

    def _asked(self, prompt: str, answer: str) -> Score:
        if self._process is None or not self._process.alive:
            self.close()
            self._process = Process(self._spec, self._seconds, self._memory)
        try:
            return self._process.ask([prompt, answer], self._seconds)
        except BaseException as error:
            self.close()
            if isinstance(error, (Late, EOFError)):
                return Score(0.0, _late(self._seconds) if isinstance(error, Late) else str(error))
            raise  # Ctrl-C: the answer that is still to come must not be taken for the next one's


def _full(spec: str) -> str:
    if spec in NAMES:
        return f"llm_align.tasks.{spec}:reward"
    if not all(spec.rpartition(":")[::2]):
        tasks = ", ".join(NAMES)
        raise ValueError(f"no reward {spec!r}; give a task ({tasks}), package.module:function, or file.py:function")
    return spec


def _late(seconds: float) -> str:
    return f"took more than {seconds:g} seconds"


def _timed(call: Callable[[], Any], seconds: float) -> Any:
    """Call with a limit, where there can be one. A timer that ran before, as a test's, runs on afterwards."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return call()

    def ring(*_: object) -> None:
        raise Late

    start = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    rest, every = signal.setitimer(
        signal.ITIMER_REAL, seconds
    )  # once: a second ring could come after the handler's end
    try:
        try:
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, handler)
        if rest:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, rest - (time.monotonic() - start)), every)
