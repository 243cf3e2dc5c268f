"""HAProxy in front of replicas: its configuration, and the few orders that a rollout gives it.

HAProxy sends a request again when a replica was lost before it answered anything. A stream that was begun it cannot
mend: it does not know what the text means. The caller sees it break off and asks again (`llm_ops.service.relay` shows
what a balancer that knows the text can do).
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

MISSING = "haproxy is not installed; `apt-get install haproxy` brings it"


# What holds wherever it runs. Sent again is only what was not answered at all: a text is never joined to another; and
# what is sent again must be there whole.
RULES = """defaults
    mode http
    timeout connect 2s
    timeout client 600s
    timeout server 600s
    timeout queue 30s
    retries 2
    option redispatch 1
    retry-on conn-failure empty-response response-timeout 502 503 504
    option http-buffer-request
"""
REPLICAS = """backend replicas
    balance leastconn
    option httpchk GET /health
    http-check expect status 200
    default-server check inter 500ms fall 2 rise 1 maxconn 256
"""


def configuration(port: int, slots: int, control: Path) -> str:
    """A configuration with places for replicas, all empty at first: `Control.put` fills them.

    Args:
        port: of 127.0.0.1 that callers use; one more for its own numbers, in Prometheus' form.
        slots: places for replicas.
        control: a socket for orders; its path may not be longer than some 90 characters.

    Raises:
        ValueError: for no place, or a path that is too long.
    """
    if slots < 1 or len(str(control)) > 90:
        raise ValueError(f"slots={slots} must be at least 1, and {control} no longer than 90 characters")
    servers = "\n".join(f"    server r{n} 127.0.0.1:1 disabled" for n in range(1, slots + 1))
    return f"""global
    maxconn 4096
    stats socket {control} mode 600 level admin

{RULES}
frontend callers
    bind 127.0.0.1:{port}
    http-request deny deny_status 413 if {{ req.body_size gt 4000000 }}
    default_backend replicas

frontend numbers
    bind 127.0.0.1:{port + 1}
    http-request use-service prometheus-exporter if {{ path /metrics }}

{REPLICAS}{servers}
"""


class Control:
    """Orders to a running HAProxy, by its socket.

    Args:
        path: the socket's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def order(self, line: str) -> str:
        """Send a line and give what it answers.

        Raises:
            RuntimeError: for an order that is refused.
        """
        with socket.socket(socket.AF_UNIX) as way:
            way.settimeout(5)
            way.connect(str(self.path))
            way.sendall(line.encode() + b"\n")
            answer = b"".join(iter(lambda: way.recv(65536), b"")).decode().strip()
        wrong = ("No such", "Unknown", "Require", "Can't", "Invalid", "Permission")
        if any(answer.startswith(each) for each in wrong):
            raise RuntimeError(f"haproxy refuses {line!r}: {answer.splitlines()[0]}")
        return answer

    def put(self, slot: int, port: int) -> None:
        """Put a replica of this machine in a place; it gets requests as soon as its health is seen."""
        self.order(f"set server replicas/r{slot} addr 127.0.0.1 port {port}")
        self.order(f"set server replicas/r{slot} check-port {port}")
        self.order(f"enable health replicas/r{slot}")
        self.order(f"set server replicas/r{slot} state ready")

    def state(self, slot: int, state: Literal["ready", "drain", "maint"]) -> None:
        """Let a place take requests, end what it has, or take none."""
        self.order(f"set server replicas/r{slot} state {state}")

    def inside(self, slot: int) -> int:
        """Requests that a place has now."""
        return int(self._row(slot)["scur"])

    def up(self, slot: int) -> bool:
        """Whether a place gets requests."""
        return self._row(slot)["status"].startswith("UP")

    def _row(self, slot: int) -> dict[str, str]:
        head, *rows = self.order("show stat").removeprefix("# ").splitlines()
        for row in rows:
            found = dict(zip(head.split(","), row.split(","), strict=False))
            if (found["pxname"], found["svname"]) == ("replicas", f"r{slot}"):
                return found
        raise RuntimeError(f"haproxy has no place r{slot}")


@contextmanager
def haproxy(folder: Path, port: int, slots: int) -> Iterator[Control]:
    """Run HAProxy on 127.0.0.1 with its files in a folder; the configuration is checked first.

    Raises:
        RuntimeError: where it is not installed, refuses the configuration, or does not start.
    """
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        raise RuntimeError(MISSING)
    control, file = folder / "control", folder / "haproxy.cfg"
    file.write_text(configuration(port, slots, control), encoding="utf-8")
    checked = subprocess.run([program, "-c", "-f", str(file)], capture_output=True, text=True)
    if checked.returncode:
        raise RuntimeError(f"haproxy refuses {file}: {checked.stderr.strip().splitlines()[-1]}")
    process = subprocess.Popen([program, "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 10
        while not control.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"haproxy did not start; run {program} -f {file} to see why")
            time.sleep(0.05)
        yield Control(control)
    finally:
        process.terminate()
        process.wait(10)


def free_ports(count: int) -> Sequence[int]:
    """Ports of 127.0.0.1, one after the other, on which nobody listens now.

    Raises:
        RuntimeError: when a hundred tries find none.
    """
    for _ in range(100):
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            start = first.getsockname()[1]
        taken = []
        try:
            for port in range(start, start + count):
                taken.append(socket.socket())
                taken[-1].bind(("127.0.0.1", port))
            return range(start, start + count)
        except (OSError, OverflowError):
            continue
        finally:
            for each in taken:
                each.close()
    raise RuntimeError(f"no {count} free ports one after the other")
