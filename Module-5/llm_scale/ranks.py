"""`Ranks`: processes that wait for functions, so that a notebook runs distributed code line by line.

A kernel can neither fork itself safely nor hand a function of a cell to `torch.multiprocessing`. So torchrun starts the
processes once, as it does on a cluster; each call then sends them a function and gives back what each one returned.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import os
import pickle
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import cloudpickle

START_SECONDS = 120  # until every rank has imported torch and said so; a busy laptop needs 20


class RankError(RuntimeError):
    """A rank raised, died or did not come back. All are stopped; the next call starts new ones."""


class Ranks:
    """N processes, one for each rank of a process group.

    They start with the first call, each with one thread, on the CPU with gloo, or where there are N GPUs on one each
    with NCCL. They end with `close()`, at the end of a `with`, or with the process that made them.

    Args:
        size: how many.
        timeout: seconds that a collective, and a call as a whole, may take.

    Raises:
        ValueError: for less than one.
    """

    def __init__(self, size: int, timeout: float = 60.0) -> None:
        if size < 1:
            raise ValueError(f"Ranks({size}): at least one rank is needed")
        self.size, self.timeout, self._key = size, timeout, secrets.token_bytes(32)
        self._connections: list[Connection] = []
        self._pids: list[int] = []
        self._agent: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        atexit.register(self.close)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call a function on every rank, with the same arguments; what each returned, by rank.

        The function may stand in a notebook cell and use what other cells define; each rank gets a copy. What it prints
        is printed here, with its rank before it.

        Raises:
            NotImplementedError: when every rank raises it.
            RankError: when a rank raises anything else (with its words), dies, or is not done in time (with the ranks
                that are not).
        """
        payload = _dumps((function, args, kwargs))
        if self._agent is None:
            self._start()
        for connection in self._connections:
            connection.send_bytes(payload)
        try:
            return self._collect(function)
        except NotImplementedError:  # every rank has come back, and none has begun
            raise
        except BaseException:  # also Ctrl-C: others may wait for each other in a collective
            self.close()
            raise

    def close(self) -> None:
        """Stop the processes; harmless when there are none."""
        for connection in self._connections:
            connection.close()  # a rank that waits for work ends by itself
        if self._agent is not None:
            for pid in self._pids:  # one that hangs in a collective does not
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._agent.kill()
            self._agent.wait()
        if self._folder is not None:
            self._folder.cleanup()
        self._connections, self._pids, self._agent, self._folder = [], [], None, None

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        atexit.unregister(self.close)

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")  # readable by its owner alone, as is the socket
        try:
            with Listener(str(Path(self._folder.name) / "socket"), authkey=self._key) as listener:
                self._launch(listener, Path(self._folder.name) / "log")
        except BaseException:
            self.close()
            raise

    def _launch(self, listener: Listener, log: Path) -> None:
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
            "RANKS_ADDRESS": str(listener.address), "RANKS_KEY": self._key.hex(),
            "RANKS_TIMEOUT": str(self.timeout + 30),  # a hang is told of here, with its ranks, and not by one of them
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.size),
                   "-m", "llm_scale.worker"]  # fmt: skip
        with log.open("wb") as output:
            self._agent = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        arrived: queue.Queue[tuple[int, int, Connection]] = queue.Queue()
        threading.Thread(target=_accept, args=(listener, self.size, arrived), daemon=True).start()
        found: dict[int, tuple[int, Connection]] = {}
        end = time.monotonic() + START_SECONDS
        while len(found) < self.size:
            try:
                rank, pid, connection = arrived.get(timeout=0.2)
                found[rank] = pid, connection
            except queue.Empty:
                if self._agent.poll() is not None or time.monotonic() > end:
                    words = log.read_text("utf-8", errors="replace").strip().splitlines() or ["no word from them"]
                    raise RankError(f"the {self.size} ranks did not start: {words[-1]}") from None
        self._pids = [found[rank][0] for rank in range(self.size)]
        self._connections = [found[rank][1] for rank in range(self.size)]

    def _collect(self, function: Callable[..., Any]) -> list[Any]:
        from multiprocessing.connection import wait

        results: dict[int, Any] = {}
        failed: dict[int, str] = {}
        words: dict[int, str] = {}
        end = time.monotonic() + self.timeout
        while len(results) + len(failed) < self.size:
            waiting = [c for rank, c in enumerate(self._connections) if rank not in results and rank not in failed]
            # Once one has failed, the others may wait for it for ever; what they still have to say comes at once.
            patience = 1.0 if failed else end - time.monotonic()
            ready = wait(waiting, timeout=max(patience, 0.0))
            if not ready:
                break
            for connection in ready:
                rank = self._connections.index(connection)  # type: ignore[arg-type]
                try:
                    fine, value, printed = pickle.loads(connection.recv_bytes())  # type: ignore[union-attr]
                except (EOFError, ConnectionError):
                    fine, value, printed = False, "it died without a word", ""
                words[rank] = printed
                (results if fine else failed)[rank] = value
        for rank in sorted(words):
            for line in words[rank].splitlines():
                print(f"[rank {rank}] {line}")
        if len(failed) == self.size and all(text.startswith("NotImplementedError") for text in failed.values()):
            raise NotImplementedError(failed[0].partition(": ")[2])  # an exercise that is still to be done
        if failed:
            raise RankError("; ".join(f"rank {rank}: {failed[rank]}" for rank in sorted(failed)))
        if late := [rank for rank in range(self.size) if rank not in results]:
            name = getattr(function, "__name__", "the function")
            raise RankError(
                f"after {self.timeout:g} s {name} is not done on rank {', '.join(map(str, late))}: do all ranks call "
                "the same collectives in the same order?"
            )
        return [results[rank] for rank in range(self.size)]


class _Pickler(cloudpickle.Pickler):
    """Modules of torch's settings too go by name. cloudpickle sends `torch.distributed.config` along with a function
    that uses `torch.distributed` and anything's `.config`, and does not know it as a module: it has a class of its own.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.ModuleType) and type(obj) is not types.ModuleType:
            return importlib.import_module, (obj.__name__,)
        return super().reducer_override(obj)


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def _accept(
    listener: Listener, number: int, arrived: queue.Queue[tuple[int, int, Connection]]
) -> None:  # fmt: skip
    with contextlib.suppress(OSError, EOFError):  # where the ranks did not start
        for _ in range(number):
            connection = listener.accept()
            rank, pid = connection.recv()
            arrived.put((rank, pid, connection))
