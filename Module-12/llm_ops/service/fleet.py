"""Replicas behind a balancer: started, lost, and replaced one by one while they serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from llm_serve.server.child import Child

from llm_ops.gate.verdict import Verdict
from llm_ops.service.balancer import Balancer, balanced

Judge = Callable[[str, str], Verdict]
"""(address of a replica with the old model, address of one with the new) -> whether the new one may serve."""


@dataclass
class Rollout:
    """What became of a rollout.

    Attributes:
        done: whether the new model serves.
        reason: in a line.
        verdict: of the gate; None where the new model did not even start.
        replaced: replicas that were.
    """

    done: bool
    reason: str
    verdict: Verdict | None = None
    replaced: int = 0


@dataclass
class Fleet:
    """Replicas of one command.

    Args:
        command: that serves, but for its port (`llm_serve.server.child.ours`).
        balancer: in front of them.
        url: of the balancer.
        patience: seconds that a replica may take to be ready, and to answer what it has.

    Attributes:
        replicas: processes, those that were killed left out.
    """

    command: Sequence[str]
    balancer: Balancer
    url: str
    patience: float = 240.0
    replicas: list[Child] = field(default_factory=list)

    def start(self, count: int = 1, command: Sequence[str] | None = None) -> list[Child]:
        """Start replicas side by side; each gets requests when it is ready.

        Raises:
            RuntimeError: when one does not get ready; those of this call are ended.
        """
        new = [Child(command or self.command) for _ in range(count)]
        try:
            for each in new:
                each.wait(self.patience)
        except RuntimeError:
            for each in new:
                each.stop()
            raise
        self.replicas += new
        for each in new:
            self.balancer.add(each.url)
        return new

    def kill(self, replica: Child) -> None:
        """Lose a replica, as a machine that fails would lose it."""
        replica.kill()
        self.replicas.remove(replica)
        self.balancer.remove(replica.url)

    def retire(self, replica: Child) -> bool:
        """Let a replica answer what it has and end it; whether it did so in time."""
        drained = self.balancer.drain(replica.url, self.patience)
        self.balancer.remove(replica.url)
        self.replicas.remove(replica)
        replica.stop()
        return drained

    def roll_out(self, command: Sequence[str], judge: Judge) -> Rollout:
        """Put another model in the place of this one, if a gate lets it.

        The first new replica is judged before any caller meets it. Then new ones come and old ones go one by one, so
        that there is never less room than before.

        Args:
            command: that serves the new model.
            judge: looks at an old and a new replica.
        """
        candidate = Child(command)
        try:
            candidate.wait(self.patience)
            verdict = judge(self.replicas[0].url, candidate.url)
        except RuntimeError as error:
            candidate.stop()
            return Rollout(False, f"stopped: {error}")
        if not verdict.passed:
            candidate.stop()
            return Rollout(False, f"stopped by the gate: {verdict.reason}", verdict)
        old, self.command = list(self.replicas), command
        self.replicas.append(candidate)
        self.balancer.add(candidate.url)
        for number, each in enumerate(old):
            self.retire(each)
            if number + 1 < len(old):
                self.start()
        return Rollout(True, verdict.reason, verdict, len(old))


@contextmanager
def fleet(command: Sequence[str], count: int = 2, balancer: Balancer | None = None) -> Iterator[Fleet]:
    """Start replicas and a balancer on free ports of this machine, and end all of it.

    Raises:
        RuntimeError: when a replica does not get ready.
    """
    front = balancer or Balancer()
    with balanced(front) as url:
        made = Fleet(command, front, url)
        try:
            made.start(count)
            yield made
        finally:
            for each in made.replicas:
                each.stop()
