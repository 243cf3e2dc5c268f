"""Ranks of a command: started by torchrun, or found where torchrun or Slurm has started them; their words, gathered."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

STOP_SECONDS = 40  # torchrun gives its ranks 30 to end by themselves
FAILURE = re.compile(r"rank\s*:\s*(\d+)[^\n]*\n\s*exitcode\s*:\s*(-?\d+)")  # in torchrun's summary, one a rank
ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*:\s*(\d+)", re.DOTALL)
AN_ERROR = re.compile(r"(llm-scale|local-lora|align): |(\[rank\d+\]: )?[\w.]*(Error|Exception)\b")
OF_A_PEER = re.compile(
    r"gloo|NCCL|[Cc]onnection (closed|reset)|DistBackendError|^(llm-scale|local-lora|align): terminated"
)


class Place(NamedTuple):
    """How many ranks somebody has started: on each node, and nodes."""

    devices: int
    nodes: int


def joined(environ: Mapping[str, str] | None = None) -> Place | None:
    """The ranks that torchrun or Slurm has started this process among; None for a process by itself."""
    env = os.environ if environ is None else environ
    if not any(name.startswith(("TORCHELASTIC_", "SLURM_")) for name in env):
        return None
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        devices = int(env["LOCAL_WORLD_SIZE"])
        return Place(devices, int(env["WORLD_SIZE"]) // devices)
    if SLURMEnvironment.detect():
        nodes = int(env.get("SLURM_NNODES", "1"))
        return Place(int(env["SLURM_NTASKS"]) // nodes, nodes)
    return None


def start_ranks(number: int, module: str, arguments: Sequence[str], program: str = "llm-scale") -> int:
    """Run `python -m MODULE ARGUMENTS` on N ranks of this machine, to the end of all; the exit code, 0 or 1.

    A rank that fails or dies ends all. What rank 0 says on standard error is shown as it comes; what others say beside
    that, and which ended first and why, at the end.
    """
    ranks = watched_ranks(number, module, arguments, program)
    while True:
        try:
            next(ranks)
        except StopIteration as end:
            return int(end.value)


def watched_ranks(
    number: int, module: str, arguments: Sequence[str], program: str = "llm-scale"
) -> Generator[None, None, int]:
    """`start_ranks`, with a turn for the caller ten times a second, and one at the end. Closed early, it ends them."""
    with tempfile.TemporaryDirectory(prefix="llm-scale-") as folder:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number),
            "--redirects", "2", "--log-dir", folder,
            "-m", module, "--", *arguments,  # without "--" torchrun takes --log for its own --log-dir
        ]  # fmt: skip
        environment = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // number)), **os.environ,
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),  # a checkout, not installed
        }  # fmt: skip
        agent_words, shown = Path(folder) / "agent", 0
        with agent_words.open("wb") as words:
            agent = subprocess.Popen(command, env=environment, stderr=words)
            try:
                while agent.poll() is None:
                    time.sleep(0.1)
                    shown += _show(_said(folder, 0)[shown:])
                    yield
            except BaseException:  # Ctrl-C, SIGTERM: torchrun passes them on
                agent.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    agent.wait(STOP_SECONDS)
                agent.kill()
                raise
        yield
        first = _said(folder, 0)
        _show(first[shown:])
        if agent.returncode == 0:
            return 0
        others = {rank: _said(folder, rank) for rank in range(1, number)}
        for rank, said in others.items():
            _show([line if line.startswith("[rank") else f"[rank {rank}] {line}" for line in said if line not in first])
        if not first or any(said[-1:] != first[-1:] for said in others.values()):  # else that line says it all
            reason = _reason(agent_words.read_text("utf-8", errors="replace"), {0: first, **others})
            told = reason.replace("rank 0 failed first", program)
            if first[-1:] != [told] or any(others.values()):  # else rank 0 said it, and the others never came to it
                _show([f"{program}: {reason}"])
        return 1


def _said(folder: str, rank: int) -> list[str]:
    """The whole lines that a rank has written on standard error."""
    found = sorted(Path(folder).glob(f"*/attempt_*/{rank}/stderr.log"))
    text = found[-1].read_text("utf-8", errors="replace") if found else ""
    return text.split("\n")[:-1]


def _show(lines: Sequence[str]) -> int:
    for line in lines:
        print(line, file=sys.stderr, flush=True)
    return len(lines)


def _reason(agent: str, said: Mapping[int, Sequence[str]]) -> str:
    """Which rank brought the others down.

    torchrun names the first that it saw ended, and where several end within a tenth of a second that may be one whose
    peer was gone, or that it has stopped itself. So an error that is not of a peer comes first, then SIGKILL.
    """
    ended = {int(rank): int(code) for rank, code in FAILURE.findall(agent)}
    if not ended:
        last = [line for line in agent.splitlines() if line.strip()][-1:]
        return f"the ranks did not start: {last[0].strip() if last else 'no word from torchrun'}"
    errors = {rank: [line for line in said.get(rank, ()) if AN_ERROR.match(line)][-1:] for rank in ended}
    for rank, error in errors.items():
        if error and not OF_A_PEER.search(error[0]):
            told = re.sub(r"^(llm-scale|local-lora|\[rank\d+\]): ", "", error[0])  # the second is torch's
            return f"rank {rank} failed first: {told}"
    cause = ROOT_CAUSE.search(agent)
    rank = next((rank for rank, code in ended.items() if code == -signal.SIGKILL), int(cause[1]) if cause else -1)
    code = ended.get(rank, 1)
    if code < 0:
        return f"rank {rank} was killed by {signal.Signals(-code).name}; all ranks are stopped"
    return f"rank {rank} ended first, with exit code {code}; all ranks are stopped"
