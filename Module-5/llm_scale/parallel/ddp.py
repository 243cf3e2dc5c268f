"""Data parallel: every rank holds the whole model and sees other rows; gradients are averaged before each step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm_scale.collectives import LIBRARY, Collectives


def same_start(model: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor, 0)


class NaiveDataParallel:
    """All gradients averaged one after the other, once the backward pass is over.

    Args:
        model: the same on every rank from here on; a matrix that two layers share counts once.
        collectives: the library's, or the ring by hand.
    """

    def __init__(self, model: nn.Module, collectives: Collectives = LIBRARY) -> None:
        self.parameters, self.collectives = list(model.parameters()), collectives
        same_start(model)

    def average(self) -> None:
        """Replace each gradient by its mean over the ranks; call it between backward pass and step."""
        for parameter in self.parameters:
            if parameter.grad is None:  # this rank did not use it; another may have
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = self.collectives.all_reduce(parameter.grad) / dist.get_world_size()


class Bucket:
    """Parameters whose gradients travel together, and the message on its way."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.missing = parameters, set(parameters)
        self.flat: Tensor | None = None
        self.work: Any = None

    def send(self) -> None:
        """Begin the sum over all ranks, and do not wait for it."""
        self.flat = torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters
        ])  # fmt: skip
        self.work = dist.all_reduce(self.flat, async_op=True)

    def receive(self) -> None:
        """Wait for the sum, and cut it into the gradients' means."""
        assert self.flat is not None
        self.work.wait()
        self.flat /= dist.get_world_size()
        parts = self.flat.split([p.numel() for p in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        self.missing, self.flat, self.work = set(self.parameters), None, None


class DataParallel:
    """Gradients averaged in buckets, each on its way while the backward pass still computes the next ones.

    Li et al. 2020, PyTorch Distributed (arXiv:2006.15704), section 3.2.

    Args:
        model: the same on every rank from here on.
        bucket_bytes: of gradients, at least, before a bucket is sent.
    """

    def __init__(self, model: nn.Module, bucket_bytes: int = 25 * 2**20) -> None:
        same_start(model)
        self.buckets, self.syncing, self.sent = list[Bucket](), True, 0
        pending: list[nn.Parameter] = []
        for parameter in reversed(list(model.parameters())):  # about the order in which a backward pass has them ready
            pending.append(parameter)
            if sum(p.nbytes for p in pending) >= bucket_bytes:
                self.buckets.append(Bucket(pending))
                pending = []
        if pending:
            self.buckets.append(Bucket(pending))
        self.bucket_of = {p: bucket for bucket in self.buckets for p in bucket.parameters}
        for parameter in self.bucket_of:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, parameter: nn.Parameter) -> None:
        if not self.syncing:
            return
        self.bucket_of[parameter].missing.discard(parameter)
        # In the buckets' order on every rank, whatever came first on this one: a collective meets its like.
        while self.sent < len(self.buckets) and not self.buckets[self.sent].missing:
            self.buckets[self.sent].send()
            self.sent += 1

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside only add to this rank's gradients; the first one after it sends the sum."""
        self.syncing = False
        try:
            yield
        finally:
            self.syncing = True

    def finish(self) -> None:
        """Send what is left, wait for all; call it between backward pass and step."""
        for bucket in self.buckets[self.sent :]:  # a parameter in it was not used on this rank
            bucket.send()
        for bucket in self.buckets:
            bucket.receive()
        self.sent = 0
