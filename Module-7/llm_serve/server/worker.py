"""The engine in a thread of its own, and its answers in asyncio's: one computes, the other talks."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

from llm_serve.engine.engine import Delta, Engine
from llm_serve.engine.request import Request
from llm_serve.server.metrics import Metrics


class EngineStopped(RuntimeError):
    """The engine's thread ended, by a failure or because the server is going down."""


class Ticket:
    """A request on its way: what is written for it comes out of `deltas`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answers: int) -> None:
        self.loop, self.open = loop, answers
        self.queue: asyncio.Queue[list[Delta] | Exception] = asyncio.Queue()
        self.number = -1
        self.begin = time.perf_counter()
        self.last: dict[int, float] = {}  # when each answer got its last token

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """What each step writes for it, until every answer has ended.

        Raises:
            EngineStopped: when the engine does before.
        """
        while self.open:
            found = await self.queue.get()
            if isinstance(found, Exception):
                raise found
            self.open -= sum(each.finish is not None for each in found)
            yield found


class Worker:
    """Runs an engine in a thread.

    Args:
        engine: nobody else may use it from now on.
        metrics: what is counted.
    """

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine, self.metrics = engine, metrics
        self.failure: BaseException | None = None
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is not written yet is cancelled."""
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and self.failure is None

    async def submit(self, request: Request) -> Ticket:
        """Hand a request to the engine.

        Raises:
            RequestError: for one that cannot be served.
            QueueFull: for one too many.
            EngineStopped: when there is no engine any more.
        """
        ticket = Ticket(asyncio.get_running_loop(), request.n)
        done: Future[None] = Future()

        def order() -> None:
            try:
                self._refuse_after_failure()
                ticket.number = self.engine.submit(request)
            except Exception as error:
                done.set_exception(error)
                return
            self._tickets[ticket.number] = ticket
            self.metrics.taken(len(request.prompt))
            done.set_result(None)

        self._order(order)
        try:
            await asyncio.shield(asyncio.wrap_future(done))
        except asyncio.CancelledError:  # the caller has gone before the engine looked
            self._order(lambda: self._cancel(ticket))
            raise
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request; nothing happens where it has ended."""
        if ticket.open and self.alive:
            self._order(lambda: self._cancel(ticket))

    def _cancel(self, ticket: Ticket) -> None:
        if self.failure is None:
            self._hand_out(self.engine.cancel(ticket.number))
            self.metrics.held(self.engine)  # no step may follow that would tell

    def _refuse_after_failure(self) -> None:
        if self.failure is not None:
            raise EngineStopped(f"the engine failed: {type(self.failure).__name__}; restart the server")

    def _order(self, order: Callable[[], None]) -> None:
        self._refuse_after_failure()
        if not self.alive:
            raise EngineStopped("the engine has stopped; restart the server")
        self._orders.put(order)

    def _run(self) -> None:
        try:
            while self._take_orders():
                before = time.perf_counter()
                deltas = self.engine.step()
                self.metrics.stepped(self.engine, time.perf_counter() - before)
                self._hand_out(deltas)
            self._abandon(EngineStopped("the server is going down"))
        except BaseException as error:  # of the model or of this code; a panic of a library in Rust is no Exception
            self.failure = error
            self._abandon(EngineStopped(f"the engine failed: {type(error).__name__}"))
            while (order := self._orders.get()) is not None:  # who asked during the step that failed is told too
                order()

    def _take_orders(self) -> bool:
        """All that was asked since the last step; waits where there is nothing to compute. False at the end."""
        while True:
            try:
                order = self._orders.get(block=not self.engine.unfinished)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()

    def _hand_out(self, deltas: list[Delta]) -> None:
        parts: dict[int, list[Delta]] = {}
        for delta in deltas:
            parts.setdefault(delta.number, []).append(delta)
        now = time.perf_counter()
        for number, part in parts.items():
            ticket = self._tickets.get(number)
            if ticket is None:
                continue
            for delta in part:
                self.metrics.wrote(delta, ticket.begin, ticket.last.get(delta.index), now)
                ticket.last[delta.index] = now
            if number not in self.engine.open_requests:
                del self._tickets[number]
            self._tell(ticket, part)

    def _abandon(self, error: Exception) -> None:
        for ticket in self._tickets.values():
            self._tell(ticket, error)
        self._tickets.clear()

    @staticmethod
    def _tell(ticket: Ticket, what: Any) -> None:
        try:
            ticket.loop.call_soon_threadsafe(ticket.queue.put_nowait, what)
        except RuntimeError:  # the loop is closed: nobody listens
            return
