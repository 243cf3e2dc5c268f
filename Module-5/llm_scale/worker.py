"""What `Ranks` starts: join the process group, then call what comes until the other side is gone."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import traceback
from datetime import timedelta
from multiprocessing.connection import Client
from typing import Any

import torch
import torch.distributed as dist


def main() -> None:
    """Serve one rank."""
    import cloudpickle  # here: other ranks join without it

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    join(rank, size, float(os.environ["RANKS_TIMEOUT"]))
    with Client(os.environ["RANKS_ADDRESS"], authkey=bytes.fromhex(os.environ["RANKS_KEY"])) as connection:
        connection.send((rank, os.getpid()))
        while True:
            try:
                payload = connection.recv_bytes()
            except (EOFError, OSError):
                return
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                fine, value = answer(payload)
            connection.send_bytes(cloudpickle.dumps((fine, value, printed.getvalue())))


def join(rank: int, size: int, seconds: float) -> None:
    """Make the process group: NCCL with a GPU for each rank, else gloo; a collective may take so many seconds."""
    timeout = timedelta(seconds=seconds)
    if torch.cuda.device_count() >= size:
        torch.cuda.set_device(rank)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout)
    else:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", timeout=timeout)


def answer(payload: bytes) -> tuple[bool, Any]:
    """Whether the function came to its end, and what it returned, or the error in a line and where it was."""
    try:
        function, args, kwargs = pickle.loads(payload)
        return True, function(*args, **kwargs)
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        return False, f"{type(error).__name__}: {error} (line {places[-1].lineno} of {places[-1].name})"


if __name__ == "__main__":
    main()
