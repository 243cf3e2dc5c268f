"""What a caller may catch: a request that cannot be served, and an engine that is full."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that this engine can never serve; the message says what to change."""


class ConstraintError(ValueError):
    """A constraint that cannot go on: its answer ends, and no other."""


class QueueFull(RuntimeError):
    """As many requests wait as may; send it again later."""
