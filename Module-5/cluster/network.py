"""Two hosts on one Linux machine: network namespaces with a cable between them. For rehearsals; as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import slurm

ADDRESSES = ("192.0.2.1", "192.0.2.2")  # of the block that RFC 5737 keeps for examples
CABLE = "cable"  # the interface's name on both hosts
# How often a host sends again what is not acknowledged, before a connection fails: 0.2 s, then twice as long each time.
# Linux's 15 are a quarter of an hour, for which torchrun would wait inside its store, whatever its own timeouts say.
RETRIES = 6


def missing() -> str:
    """Why there can be no such hosts here, in a few words; empty where there can."""
    if os.name != "posix" or not Path("/proc/self").exists():
        return "this is not Linux"
    if os.geteuid() != 0:
        return "network namespaces need root; try a container"
    if shutil.which("ip") is None:
        return "ip not found; Debian's package iproute2 has it"
    try:
        with TwoHosts():
            return ""
    except RuntimeError as error:  # a container may lack the right to it
        return str(error)


class TwoHosts:
    """Two network namespaces and a pair of virtual interfaces that joins them, from `with` to its end.

    What `start` has started, and whatever that has started, ends with it.

    Attributes:
        names: of the namespaces; those of two rehearsals at a time differ.

    Raises:
        RuntimeError: when `ip` cannot make them, with its reason.
    """

    def __init__(self) -> None:
        self.names = tuple(f"rehearsal{host}-{os.getpid()}" for host in (1, 2))
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> TwoHosts:
        try:
            for name in self.names:
                ip("netns", "add", name)
            first, second = self.names
            ip("link", "add", CABLE, "netns", first, "type", "veth", "peer", "name", CABLE, "netns", second)
            for name, address in zip(self.names, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
                for interface in ("lo", CABLE):
                    ip("-n", name, "link", "set", interface, "up")
                ip("netns", "exec", name, "sh", "-c", f"echo {RETRIES} > /proc/sys/net/ipv4/tcp_retries2")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with undisturbed():
            for process in self._started:
                slurm.kill(process.pid)
                process.wait()
            for name in self.names:
                for pid in self.processes(name):  # whose parent was gone
                    slurm.kill(pid)
                with contextlib.suppress(RuntimeError):  # one that was never made
                    ip("netns", "delete", name)

    def start(
        self, host: int, command: Sequence[str], environment: Mapping[str, str], output: Path
    ) -> subprocess.Popen[bytes]:
        """Start a command on host 0 or 1; what it says goes to a file."""
        with output.open("ab") as said:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], *command], env={**environment, "GLOO_SOCKET_IFNAME": CABLE},
                stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            )  # fmt: skip
        self._started.append(process)
        return process

    def cut(self) -> None:
        """Pull the cable out of the second host."""
        ip("-n", self.names[1], "link", "set", CABLE, "down")

    def mend(self) -> None:
        """Put it back."""
        ip("-n", self.names[1], "link", "set", CABLE, "up")

    @staticmethod
    def processes(name: str) -> list[int]:
        """What runs on a host."""
        done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        return [int(word) for word in done.stdout.split()]


def ip(*arguments: str) -> None:
    """Run iproute2's command.

    Raises:
        RuntimeError: when it fails, with its reason.
    """
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {' '.join(done.stderr.split())}")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put SIGINT and SIGTERM off until the end: a second one would leave half of a clean-up undone."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
