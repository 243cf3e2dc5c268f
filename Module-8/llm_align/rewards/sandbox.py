"""Python that a model wrote, run with its tests in a process that has little: read below what that does not stop."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llm_align.rewards.process import ending

BOXED = Path(__file__).with_name("boxed.py")
FILE_BYTES = 2**20
MOST_OUTPUT = 4000  # characters
START_SECONDS = 2.0  # for Python to start, beside the code's own time


@dataclass(frozen=True)
class Ran:
    """What came of a run.

    Attributes:
        passed: the code and then the tests ran to their end.
        output: what they printed, cut after `MOST_OUTPUT` characters.
        failure: why they did not pass, one line; None when they did.
    """

    passed: bool
    output: str
    failure: str | None


def run_python(
    code: str, tests: str, seconds: float = 5.0, memory_bytes: int = 2**29, allow_network: bool = False
) -> Ran:
    """Run code, then tests in the same namespace, in a process of their own.

    The process has no environment, no input, an empty folder that is removed afterwards, no network, and limits: of
    time, memory (on Linux), the size of a file, and, unless it is root's, no further process or thread. Python's own
    `-I` keeps this folder and the user's packages out.

    It does NOT protect from code that wants to do harm. The code can read every file that this user can read, and write
    wherever this user can write. Limits of processes do not hold for root, and a process that leaves its group lives on
    after the run. The kernel is the one that everything else on the machine runs on. Code that looks for it can find
    the secret that tells a passed run, and fake a pass. For code from a model that is trained to win, on a machine that
    matters, take a container or a virtual machine without network, and this inside of it.

    Args:
        code: what the model wrote.
        tests: statements that raise when the code is wrong, as `assert add(1, 2) == 3`.
        seconds: for both together, beside Python's start.
        memory_bytes: address space.
        allow_network: leave the network open.

    Raises:
        ValueError: when a limit is not above 0.
        RuntimeError: where the network cannot be closed and `allow_network` is False; on Windows, which has no limits.
    """
    if not seconds > 0 or memory_bytes <= 0:
        raise ValueError(f"seconds={seconds}, memory_bytes={memory_bytes}: the limits of a run are above 0")
    if os.name != "posix":
        raise RuntimeError("the sandbox needs the limits of Linux or macOS; run it there, or in WSL")
    before = [] if allow_network else _closing_network()
    if before is None:
        raise RuntimeError(
            "the network cannot be closed here (`unshare --net` does not work); pass allow_network=True to run with it"
        )
    order = {
        "code": code, "tests": tests, "seconds": seconds, "memory_bytes": memory_bytes, "file_bytes": FILE_BYTES,
        "secret": secrets.token_hex(16),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as output:
        said, ended = _run(before, order, folder, output.fileno())
        output.seek(0)
        printed = output.read(4 * MOST_OUTPUT).decode("utf-8", "replace")[:MOST_OUTPUT]
    if said.get("secret") == order["secret"]:
        return Ran(True, printed, None)
    if ended is None or ended == -signal.SIGALRM:
        return Ran(False, printed, f"took more than {seconds:g} seconds")
    too_early = f"ended before its tests were through ({ending(ended)})"
    return Ran(False, printed, str(said.get("failure", too_early)))


def _run(before: list[str], order: dict[str, object], folder: str, output: int) -> tuple[dict[str, str], int | None]:
    """What the process reported, and its exit code; None when it was killed for its time."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*before, sys.executable, "-I", str(BOXED), str(writing)], stdin=subprocess.PIPE, stdout=output, stderr=output,
        cwd=folder, env={}, pass_fds=(writing,), start_new_session=True,
    )  # fmt: skip
    os.close(writing)
    ended: int | None = None
    try:
        seconds = float(str(order["seconds"])) + START_SECONDS
        process.communicate(json.dumps(order).encode() + b"\n", timeout=seconds)
        ended = process.returncode
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError, PermissionError):  # what it started may live on in its group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.set_blocking(reading, False)  # one that left its group may hold the other end
        said = b""
        with suppress(BlockingIOError):
            said = os.read(reading, 10_000)
        os.close(reading)
    try:
        found = json.loads(said)
    except ValueError:
        found = {}
    return (found if isinstance(found, dict) else {}), ended


@cache
def _closing_network() -> list[str] | None:
    """The command before a command that closes the network to it, or None where there is none."""
    unshare = shutil.which("unshare")
    ways = [[unshare, "--net"], [unshare, "--map-root-user", "--net"]] if unshare else []
    for way in ways:
        if subprocess.run([*way, "true"], capture_output=True).returncode == 0:
            return way
    return None
