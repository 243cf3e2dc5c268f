"""Sees a reward that rises for the wrong reason: answers that shrink to nothing, or become all the same."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

WINDOW = 5  # rounds that are compared: the first ones with the last ones
LEFT = 0.5  # share that is left of length or entropy when it counts as collapsed
RISE = 0.1  # of the reward, in the first rounds' spread or, where that is less, absolutely


class Collapse:
    """Compares the first rounds of a run with its last ones; says once what has collapsed.

    Attributes:
        said: the lines that were said.
    """

    def __init__(self) -> None:
        self.first: list[dict[str, float]] = []
        self.last: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.said: list[str] = []
        self._known = set[str]()

    def see(self, line: Mapping[str, float]) -> None:
        """A round's `reward`, `reward_spread`, `length` and `entropy`."""
        if len(self.first) < WINDOW:
            self.first.append(dict(line))
            return
        self.last.append(dict(line))
        if len(self.last) < WINDOW:
            return
        before, after = (_mean(list(each)) for each in (self.first, self.last))
        if after["reward"] - before["reward"] <= RISE * max(1.0, before["reward_spread"]):
            return
        for name in ("length", "entropy"):
            if name in before and name not in self._known and after[name] < LEFT * before[name]:
                self._known.add(name)
                rose = f"the reward rose from {before['reward']:.3g} to {after['reward']:.3g}"
                fell = f"{name} fell from {before[name]:.3g} to {after[name]:.3g}"
                self.said.append(f"{rose} while {fell}: read some answers, the reward may be hacked")
                print(f"align: {self.said[-1]}", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        """What it has seen and said, as plain values: a run that goes on compares with its first rounds."""
        return {"first": self.first, "last": list(self.last), "said": self.said, "known": sorted(self._known)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the one was that gave this state."""
        self.first, self.said = list(state["first"]), list(state["said"])
        self.last, self._known = deque(state["last"], maxlen=WINDOW), set(state["known"])


def _mean(lines: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: sum(line[name] for line in lines) / len(lines) for name in lines[0] if all(name in each for each in lines)
    }
