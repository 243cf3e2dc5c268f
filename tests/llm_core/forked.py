"""Commands in processes of their own, without each importing torch and Lightning anew: seconds a process.

A server that has imported `babygpt` and started nothing forks one process a command. Run as a module it is that server.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


@functools.cache
def server():
    """The server of this test process, started when the first command is run."""
    search = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    process = subprocess.Popen(
        [sys.executable, "-m", "forked"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.kill)
    return process


def babygpt(folder, *arguments):
    """`babygpt` with arguments, in a working folder; what `subprocess.run` would give."""
    with tempfile.TemporaryDirectory() as kept:
        told = {"folder": str(folder), "arguments": list(map(str, arguments)), "kept": kept}
        print(json.dumps(told), file=server().stdin, flush=True)
        status = int(server().stdout.readline())
        out, err = (Path(kept, name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), out, err)


def serve():
    import loss_callbacks  # noqa: F401  (named on command lines)
    from llm_core.cli import main

    for line in sys.stdin:
        told = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(told["folder"])
            sys.argv[1:] = told["arguments"]
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(os.path.join(told["kept"], name), os.O_WRONLY | os.O_CREAT), number)
            sys.exit(main())
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
