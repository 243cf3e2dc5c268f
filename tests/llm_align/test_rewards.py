"""Rewards that misbehave in every way: each is a failure of one line, and the next answer gets its score."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_align.rewards import child, sandbox
from llm_align.rewards.process import Score
from llm_align.rewards.sandbox import run_python
from llm_align.rewards.scores import Rewards
from llm_align.tasks import arithmetic

# What each answer makes of the reward; the prompt says nothing.
BAD = textwrap.dedent(r'''
    import ast, ctypes, os, re, sys, time

    def reward(prompt, answer):
        return {
            "right": lambda: 0.25,
            "integer": lambda: 1,
            "raises": lambda: 1 / 0,
            "raises lines": lambda: int("a\nb" * 200),
            "exits": lambda: sys.exit(3),
            "is silent": silent,
            "hangs": hang,
            "sleeps": lambda: time.sleep(60),
            "hangs in C": lambda: re.match("(a|a)*b", "a" * 60),
            "ends": lambda: os._exit(7),
            "is killed": lambda: ctypes.string_at(0),
            "recurses": lambda: recurse(),
            "parses deep": lambda: ast.parse("-" * 100_000 + "1"),
            "fills memory": lambda: len(bytearray(2**31)),
            "prints": loud,
            "reads": lambda: float(len(sys.stdin.read())),
            "is a string": lambda: "1",
            "is None": lambda: None,
            "is True": lambda: True,
            "is NaN": lambda: float("nan"),
            "is inf": lambda: -1e999,
            "is huge": lambda: 10**400,
        }[answer]()

    def silent():
        class Mute(Exception):
            def __str__(self):
                raise RuntimeError
        raise Mute

    def hang():
        while True:
            try:
                time.sleep(0.001)
            except Exception:
                pass

    def recurse():
        return recurse() + 1

    def loud():
        print('[9.0, null]')
        os.write(1, b'[9.0, null]\n' * 1000)
        return 0.5
''')  # fmt: skip

FINE = {"right": 0.25, "integer": 1.0, "prints": 0.5, "reads": 0.0}
FAILURES = {
    "raises": "raised ZeroDivisionError: division by zero",
    "raises lines": "raised ValueError: invalid literal for int() with base 10: 'a",
    "exits": "raised SystemExit: 3",
    "is silent": "raised Mute: it cannot say what",
    "recurses": "raised RecursionError: maximum recursion depth exceeded",
    "is a string": "returned '1', a str; return a float",
    "is None": "returned None, a NoneType; return a float",
    "is True": "returned True, a bool; return a float",
    "is NaN": "returned nan; return a finite number",
    "is inf": "returned -inf; return a finite number",
    "is huge": "; return a finite number",
    "absent": "raised KeyError: 'absent'",
}
LATE = ("hangs", "sleeps")
ONLY_OUTSIDE = {
    "hangs in C": "took more than 0.5 seconds",
    "ends": "its process ended (exit code 7)",
    "is killed": "its process ended (signal 11",
    "fills memory": "raised MemoryError",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "bad.py"
    path.write_text(BAD)
    return path


@pytest.fixture
def children():
    """Processes that a test has started and not ended."""
    before = set(psutil.Process().children(recursive=True))
    yield lambda: [each for each in psutil.Process().children(recursive=True) if each not in before]
    assert not [each for each in psutil.Process().children(recursive=True) if each not in before]


def test_every_failure_is_one_line_and_the_next_answer_has_its_score(bad, children):
    wanted = {**FAILURES, **ONLY_OUTSIDE, **dict.fromkeys(LATE, "took more than 0.5 seconds")}
    answers = [text for each in wanted for text in (each, "right")] + list(FINE)
    with Rewards(f"{bad}:reward", seconds=0.5, memory_bytes=2**30) as rewards:
        scores = rewards([""] * len(answers), answers)
        found = dict(zip(answers, scores, strict=True))
        assert len(children()) == 1
    for answer, line in wanted.items():
        assert found[answer].value == 0.0 and line in (found[answer].failure or ""), (answer, found[answer])
        assert "\n" not in found[answer].failure and len(found[answer].failure) < 250
    assert all(score == Score(0.25) for answer, score in zip(answers, scores, strict=True) if answer == "right")
    assert {answer: found[answer] for answer in FINE} == {answer: Score(value) for answer, value in FINE.items()}


def test_the_parser_of_python_does_not_end_a_training(bad):
    """How it fails depends on the version of Python: an error, or a crash."""
    with Rewards(f"{bad}:reward", seconds=5) as rewards:
        deep, right = rewards(["", ""], ["parses deep", "right"])
    assert deep.value == 0.0 and deep.failure and right == Score(0.25)


def test_a_function_is_called_here(bad):
    place: dict = {}
    exec(BAD, place)
    rewards = Rewards(place["reward"], seconds=0.2)
    mine = os.getpid()
    assert Rewards(lambda prompt, answer: os.getpid() == mine and len(prompt + answer))(["ab"], ["c"]) == [Score(3.0)]
    answers = [*FAILURES, *LATE, *(set(FINE) - {"reads"})]
    for answer, score in zip(answers, rewards([""] * len(answers), answers), strict=True):
        if answer in FINE:
            assert score == Score(FINE[answer])
        else:
            line = FAILURES.get(answer, "took more than 0.2 seconds")
            assert score.value == 0.0 and line in (score.failure or ""), (answer, score)


def test_the_timer_leaves_another_as_it_was():
    rang = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    rest, every = signal.setitimer(signal.ITIMER_REAL, 30)
    try:
        Rewards(lambda prompt, answer: 1.0, seconds=0.2)(["a"], ["b"])
        assert 20 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
        signal.raise_signal(signal.SIGALRM)
        assert rang == [1]
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, rest, every)


def test_in_another_thread_there_is_no_timer_here(bad):
    found = []

    def ask():
        found.extend(Rewards(lambda prompt, answer: time.sleep(0.3) or 1.0, seconds=0.1)(["a"], ["b"]))
        with Rewards(f"{bad}:reward", seconds=0.3) as rewards:
            found.extend(rewards(["", ""], ["sleeps", "right"]))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    assert found == [Score(1.0), Score(0.0, "took more than 0.3 seconds"), Score(0.25)]


def test_numbers_of_numpy_are_numbers():
    assert Rewards(lambda prompt, answer: np.float32(0.5))(["a"], ["b"]) == [Score(0.5)]


@given(st.lists(st.tuples(st.text(max_size=50), st.text(max_size=50)), max_size=3))
@settings(max_examples=30, deadline=None)
def test_any_text_arrives_as_it_is(length, pairs):
    scores = length([prompt for prompt, _ in pairs], [answer for _, answer in pairs])
    assert scores == [Score(float(hash_of(prompt, answer))) for prompt, answer in pairs]


def hash_of(prompt, answer):
    return sum((place + 1) * ord(sign) for place, sign in enumerate(prompt + "|" + answer))


@pytest.fixture(scope="module")
def length():
    with Rewards(f"{__file__}:hash_of", memory_bytes=None, seconds=5) as rewards:
        assert rewards(["\ud800\n"], ["\x00\u2028" * 100_000]) == [
            Score(float(hash_of("\ud800\n", "\x00\u2028" * 100_000)))
        ]
        yield rewards


def test_names_of_rewards(bad, children):
    question = arithmetic.questions(1)[0]
    for spec in ("arithmetic", "llm_align.tasks.arithmetic:reward"):
        with Rewards(spec, seconds=5) as rewards:
            assert rewards([question.text] * 2, [question.answer, "none"]) == [Score(1.0), Score(0.0)]
            (score,) = rewards(["another prompt"], [question.answer])
            assert "is no question of the task arithmetic" in score.failure
    bad.with_name("broken.py").write_text("import nothing_of_that_name")
    bad.with_name("refuses.py").write_text("raise ValueError('no')")
    bad.with_name("ends.py").write_text("import os; os._exit(1)")
    for spec, line in {
        "arithmetics": "no reward 'arithmetics'; give a task (arithmetic, functions, signatures, strict_json), package",
        "": "no reward ''", "math:": "no reward 'math:'", ":sqrt": "no reward ':sqrt'",
        "no_package.at_all:reward": "importing no_package.at_all raised ModuleNotFoundError: No module named",
        "math:no_function": "math has no function 'no_function'", "math:pi": "math has no function 'pi'",
        "absent.py:reward": "there is no file absent.py", f"{bad}:absent": "has no function 'absent'",
        f"{bad.with_name('broken.py')}:f": "raised ModuleNotFoundError: No module named 'nothing_of_that_name'",
        f"{bad.with_name('refuses.py')}:f": "raised ValueError: no",
        f"{bad.with_name('ends.py')}:f": "its process ended (exit code 1) while it was loaded",
    }.items():  # fmt: skip
        with pytest.raises(ValueError) as caught:
            Rewards(spec)
        assert line in str(caught.value) and "\n" not in str(caught.value)
        assert children() == []
    for wrong in ({"seconds": 0}, {"seconds": float("nan")}, {"memory_bytes": 0}):
        with pytest.raises(ValueError, match="are above 0"):
            Rewards("arithmetic", **wrong)
    with pytest.raises(ValueError, match="not a int"):
        Rewards(3)
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        Rewards(arithmetic.reward)(["a", "b"], ["c"])


def test_a_reward_sees_what_lies_beside_it_and_no_file_of_the_working_folder(bad, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError('this is not json')")
    monkeypatch.chdir(tmp_path)
    bad.with_name("beside_it.py").write_text("value = 0.75")
    bad.with_name("imports.py").write_text("from beside_it import value\ndef f(prompt, answer): return value")
    with Rewards(f"{bad.with_name('imports.py')}:f", seconds=5) as rewards:
        assert rewards([""], [""]) == [Score(0.75)]


def test_one_process_is_kept_and_closed(bad, children):
    rewards = Rewards(f"{bad}:reward", seconds=0.2)
    (first,) = children()
    rewards([""], ["raises"])
    time.sleep(0.2 + child.GRACE + 0.2)  # a training step between two calls may take longer than a call may
    rewards([""], ["raises"])
    assert children() == [first]
    rewards([""], ["sleeps"])
    assert first not in children()
    rewards([""], ["right"])
    assert len(children()) == 1
    rewards.close()
    rewards.close()
    assert children() == []
    assert rewards([""], ["right"]) == [Score(0.25)]  # starts another
    rewards.close()


def test_an_interrupted_call_leaves_no_answer_for_the_next(bad, children):
    def ring(*_):
        raise KeyboardInterrupt

    rewards = Rewards(f"{bad}:reward", seconds=60)
    handler = signal.signal(signal.SIGUSR1, ring)
    try:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            rewards([""], ["sleeps"])
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert children() == []
    assert rewards(["", ""], ["right", "integer"]) == [Score(0.25), Score(1.0)]
    rewards.close()


@pytest.mark.parametrize("answer", ["", "sleeps", "hangs in C"])
def test_the_process_ends_with_the_one_that_started_it(bad, answer):
    """When it is idle, and also in the middle of a call: the parent is killed and cleans nothing up."""
    code = (
        "import sys, time\nfrom llm_align.rewards.scores import Rewards\nrewards = Rewards(sys.argv[1], seconds=0.2)\n"
        "print(rewards._process._popen.pid, flush=True)\nif sys.argv[2]: rewards._process.ask(['', sys.argv[2]], 60)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, f"{bad}:reward", answer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        started = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.3)  # the call has begun
        parent.kill()
    _, alive = psutil.wait_procs([started], timeout=30)
    for each in alive:
        each.kill()
    assert not alive


def test_a_fork_does_not_take_the_answers_of_another(bad):
    with Rewards(f"{bad}:reward", seconds=5) as rewards:
        pid = os.fork()
        if not pid:
            try:
                rewards([""], ["right"])
            except RuntimeError as error:
                os._exit(11 if "belongs to the process that forked" in str(error) else 12)
            os._exit(13)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 11
        assert rewards([""], ["right"]) == [Score(0.25)]


# --- sandbox ---

CLOSED = sandbox._closing_network() is not None


@pytest.fixture
def run(children):
    """In the sandbox as it is on this machine; where the network cannot be closed, only that cannot be tested."""

    def call(code, tests="", **options):
        return run_python(code, tests, allow_network=not CLOSED, **options)

    return call


def test_code_passes_its_tests_or_does_not(run):
    add = "def add(a, b):\n    return a + b\nprint('loaded')"
    assert run(add, "assert add(1, 2) == 3\nprint('tested')") == sandbox.Ran(True, "loaded\ntested\n", None)
    assert run(add, "assert add(1, 2) == 4, 'three'").failure == "the tests raised AssertionError: three"
    assert run("def add(", "").failure.startswith("the code raised SyntaxError: ")
    assert run("1 / 0", "").failure == "the code raised ZeroDivisionError: division by zero"
    assert run("raise ValueError('a\\nb')").failure == "the code raised ValueError: a"


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("import os\nos._exit(0)", "ended before its tests were through (exit code 0)"),
        ("raise SystemExit", "the code raised SystemExit"),
        ("import ctypes\nctypes.string_at(0)", "ended before its tests were through (signal 11, "),
        ("while True: pass", "took more than 1 seconds"),
        ("import re\nre.match('(a|a)*b', 'a' * 60)", "took more than 1 seconds"),
        ("import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0)\ntime.sleep(60)", "took more than 1 seconds"),
        ("x = bytearray(2**33)", "the code raised MemoryError"),
        ("open('big', 'wb').write(bytes(2**22))", "the code raised OSError: [Errno 27] File too large"),
        ("input()", "the code raised EOFError: EOF when reading a line"),
    ],
)
def test_code_that_does_not_reach_its_tests_has_not_passed(run, code, failure):
    found = run(code, "", seconds=1)
    assert not found.passed and found.failure.startswith(failure)


def test_what_a_run_finds_and_leaves(run, children, monkeypatch):
    monkeypatch.setenv("SECRET", "value")
    found = run("import os, sys\nprint(os.listdir(), {*os.environ} - {'LC_CTYPE'}, sys.flags.isolated, os.getcwd())")
    listed, environment, isolated, folder = found.output.split()  # LC_CTYPE is Python's own doing
    assert (listed, environment, isolated) == ("[]", "set()", "1") and not os.path.exists(folder)
    loud = run("print('ä' * 100_000)")
    assert loud.passed and loud.output == "ä" * sandbox.MOST_OUTPUT
    started = run("import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])")
    # Only root may start one, which is ended with the run.
    assert started.passed == (os.geteuid() == 0) and children() == []
    late = run("import atexit\natexit.register(print, 'too late')\nprint('in time')")
    assert late.passed and late.output == "in time\n"


def test_the_network_is_closed(monkeypatch):
    code = (
        "import socket\nserver = socket.socket()\nserver.bind(('127.0.0.1', 0))\nserver.listen()\n"
        "socket.create_connection(server.getsockname(), 5)"
    )
    if CLOSED:
        assert run_python(code, "").failure == "the code raised OSError: [Errno 101] Network is unreachable"
    assert run_python(code, "", allow_network=True).passed
    monkeypatch.setattr(sandbox, "_closing_network", lambda: None)
    with pytest.raises(RuntimeError, match=r"the network cannot be closed here .* pass allow_network=True"):
        run_python(code, "")
    for wrong in ({"seconds": 0}, {"memory_bytes": -1}):
        with pytest.raises(ValueError, match="are above 0"):
            run_python("", "", **wrong)
