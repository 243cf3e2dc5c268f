"""What runs inside of the sandbox: limits first, then the code, then its tests. Started by `sandbox.py`, by its path.

It imports the standard library alone: `-I` lets it see nothing of ours.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from contextlib import suppress

PROCESSES = 0  # beside those that there are


def main() -> None:
    """Read one JSON line from the input, run its code and tests, and write the secret once both are through."""
    order = json.loads(sys.stdin.readline())
    report = int(sys.argv[1])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    seconds = order["seconds"]
    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1, resource.RLIMIT_FSIZE: order["file_bytes"],
        resource.RLIMIT_NPROC: PROCESSES, resource.RLIMIT_CORE: 0,
    }  # fmt: skip
    if sys.platform != "darwin":  # which does not hold it
        limits[resource.RLIMIT_AS] = order["memory_bytes"]
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    signal.setitimer(signal.ITIMER_REAL, seconds)  # by the system: also in C code, and if nobody is left to wait
    place: dict[str, object] = {"__name__": "__main__"}
    part = ""
    try:
        for part in ("code", "tests"):
            exec(compile(order[part], f"<{part}>", "exec"), place)
        said = {"secret": order["secret"]}
    except BaseException as error:  # SystemExit too: tests that were not reached have not passed
        last = traceback.format_exception_only(error)[-1].strip().splitlines()
        said = {"failure": f"the {part} raised {last[0][:200] if last else type(error).__name__}"}
    os.write(report, json.dumps(said).encode())
    with suppress(BaseException):
        sys.stdout.flush()
    os._exit(0)  # waits for no thread and calls nothing that the code left for the end


main()
