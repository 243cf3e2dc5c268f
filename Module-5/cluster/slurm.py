"""Slurm with two nodes on one Linux machine: two `slurmd` on ports of their own. For rehearsals; as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import psutil

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("node1", "node2")

CONFIG = """ClusterName=rehearsal
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=2
MinJobAge=600
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why Slurm cannot run here, in a few words; empty where it can."""
    if os.name != "posix" or not Path("/proc/self").exists():
        return "this is not Linux"
    if os.geteuid() != 0:
        return "its daemons need root; try a container"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(absent)} not found; --install fetches {' and '.join(PACKAGES)} from Debian" if absent else ""


def install() -> None:
    """Fetch Slurm from Debian or Ubuntu.

    Raises:
        subprocess.CalledProcessError: where that fails.
    """
    quiet = {"stdout": subprocess.DEVNULL, "check": True, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    subprocess.run(["apt-get", "update", "-qq"], **quiet)  # type: ignore[call-overload]
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], **quiet)  # type: ignore[call-overload]


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Slurm:
    """The two nodes, from `with` to its end.

    Args:
        folder: of its configuration, logs and state.

    Raises:
        RuntimeError: when the nodes are not idle within a minute.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Slurm:
        control, *ports = free_ports(1 + len(NODES))
        lines = [f"NodeName={name} NodeAddr=127.0.0.1 NodeHostName={socket.gethostname()} Port={port} CPUs=2"
                 for name, port in zip(NODES, ports, strict=True)]  # fmt: skip
        (self.folder / "state").mkdir(parents=True)
        config = CONFIG.format(host=socket.gethostname(), port=control, folder=self.folder, nodes="\n".join(lines))
        (self.folder / "slurm.conf").write_text(config)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        try:
            self._start("munged", "munged", "--foreground", "--force", f"--key-file={key}",
                        f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munged.pid",
                        f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munged.seed")  # fmt: skip
            self._wait(lambda: (self.folder / "munge.socket").exists(), "munged does not answer")
            self._start("slurmctld", "slurmctld", "-D", "-i")
            for name in NODES:
                self.start_node(name)
            self._wait(lambda: [self.state(name) for name in NODES] == ["IDLE"] * len(NODES), "the nodes are not idle")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.ask("scancel", "--user=root", "--signal=KILL")
            time.sleep(1)
        for daemon in reversed(self._daemons.values()):
            kill(daemon.pid)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def _wait(self, done: object, wrong: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not done():  # type: ignore[operator]
            if time.monotonic() > end:
                raise RuntimeError(f"{wrong} after {seconds:g} s; its logs are in {self.folder}")
            time.sleep(0.2)

    def start_node(self, name: str) -> None:
        """Start a node's daemon."""
        self._start(name, "slurmd", "-D", "-N", name)

    def lose_node(self, name: str) -> None:
        """Tell Slurm that a node is gone, which it would notice after minutes, and kill everything that runs there."""
        # In this order: a killed task whose daemon still reports it is a failed job, and not a lost node.
        self.ask("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")
        kill(self._daemons[name].pid)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURMD_NODENAME") == name:
                    kill(process.pid)

    def repair_node(self, name: str) -> None:
        """Bring a lost node back."""
        self.start_node(name)
        self.ask("scontrol", "update", f"nodename={name}", "state=resume")

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise subprocess.SubprocessError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def state(self, node: str) -> str:
        """Of a node: "IDLE", "ALLOCATED", "DOWN" ..."""
        with contextlib.suppress(subprocess.SubprocessError):
            return self.field("node", node, "State").partition("+")[0].rstrip("*")
        return "UNKNOWN"

    def field(self, kind: str, name: str, field: str) -> str:
        """A value of `scontrol show`."""
        for word in self.ask("scontrol", "show", kind, name).split():
            if word.startswith(f"{field}="):
                return word.partition("=")[2]
        return ""


def kill(pid: int) -> None:
    """SIGKILL to a process and all below it, as when a machine loses its power."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
        for each in family:
            with contextlib.suppress(psutil.Error):
                each.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=5)
