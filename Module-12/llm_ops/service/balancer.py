"""A balancer in front of replicas: who gets a request, and what happens to it when a replica is lost.

This file holds who is there and who is chosen; `relay` holds the way of one request.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llm_ops.service.relay import Asked, refusal, stream, whole

State = Literal["up", "down", "draining"]
PASSED = ("authorization", "content-type", "accept")  # headers that reach a replica


@dataclass(eq=False)
class Backend:
    """A replica as the balancer sees it.

    Attributes:
        url: of it.
        state: whether it gets requests: a draining one ends what it has.
        inside: requests that it has now.
        answered: requests that it answered.
        missed: looks at its health in a row that failed.
    """

    url: str
    state: State = "up"
    inside: int = 0
    answered: int = 0
    missed: int = 0


@dataclass
class Balancer:
    """Send each request to the replica that has the fewest.

    Args:
        urls: of replicas.
        every: seconds between looks at their health.
        falls: failed looks in a row after which one gets no more requests.
        tries: replicas that a request is sent to at most.
        seconds: the longest of a request.
        most: bytes of a body.

    Attributes:
        backends: replicas.
        taken, answered, refused, failed, left: requests; the last four add up to the first when none is inside. `left`
            are those whose callers went away.
        again: times that a request was sent to another replica.
    """

    urls: tuple[str, ...] = ()
    every: float = 0.5
    falls: int = 2
    tries: int = 3
    seconds: float = 600.0
    most: int = 4_000_000
    backends: list[Backend] = field(default_factory=list)
    taken: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    left: int = 0
    again: int = 0

    def __post_init__(self) -> None:
        if self.every <= 0 or self.falls < 1 or self.tries < 1:
            raise ValueError(
                f"every={self.every} must be above 0, falls={self.falls} and tries={self.tries} at least 1"
            )
        for url in self.urls:
            self.add(url)

    def add(self, url: str) -> Backend:
        """A replica more. It gets requests at once: add it when it is ready.

        Raises:
            ValueError: for one that is there already.
        """
        if any(each.url == url for each in self.backends):
            raise ValueError(f"{url} is there already")
        self.backends.append(Backend(url))
        return self.backends[-1]

    def find(self, url: str) -> Backend:
        """The replica with an address.

        Raises:
            ValueError: where there is none.
        """
        for each in self.backends:
            if each.url == url:
                return each
        raise ValueError(f"{url} is none of {', '.join(each.url for each in self.backends) or 'no replicas'}")

    def drain(self, url: str, patience: float = 600.0) -> bool:
        """Give a replica nothing more and wait until it has answered what it has; whether it did in time.

        Called from another thread than the balancer's, as `balanced` leaves it.

        Raises:
            ValueError: for one that is not there.
        """
        backend = self.find(url)
        backend.state = "draining"
        until = time.monotonic() + patience
        while backend.inside and time.monotonic() < until:
            time.sleep(0.02)
        return not backend.inside

    def remove(self, url: str) -> None:
        """Forget a replica.

        Raises:
            ValueError: for one that is not there.
        """
        self.backends.remove(self.find(url))

    def pick(self, tried: list[Backend]) -> Backend | None:
        """The replica with the fewest requests of those that are up and were not tried; None where there is none."""
        there = [each for each in self.backends if each.state == "up" and each not in tried]
        return min(there, key=lambda each: each.inside) if there else None

    def lost(self, backend: Backend) -> None:
        """A replica broke off: it gets no more until it is seen to be well, and its request goes to another."""
        if backend.state == "up":
            backend.state, backend.missed = "down", self.falls

    def count(self, status: int) -> None:
        """A request ended."""
        if status < 400:
            self.answered += 1
        elif status < 500:
            self.refused += 1
        else:
            self.failed += 1

    def application(self) -> Starlette:
        """The balancer as a server; `uvicorn.run` takes it."""

        @asynccontextmanager
        async def life(app: Starlette) -> AsyncIterator[None]:
            ways = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            async with httpx.AsyncClient(timeout=self.seconds, limits=ways) as self.client:
                looking = asyncio.create_task(self._look())
                yield
                looking.cancel()

        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/{path:path}", self._serve, methods=["GET", "POST"]),
        ]
        return Starlette(routes=routes, lifespan=life)

    async def _look(self) -> None:
        """Look at every replica's health, for ever."""
        while True:
            await asyncio.gather(*(self._check(each) for each in self.backends))
            await asyncio.sleep(self.every)

    async def _check(self, backend: Backend) -> None:
        try:
            well = (await self.client.get(f"{backend.url}/health", timeout=2 * self.every + 1)).status_code == 200
        except httpx.HTTPError:
            well = False
        backend.missed = 0 if well else backend.missed + 1
        if backend.state == "up" and backend.missed >= self.falls:
            backend.state = "down"
        elif backend.state == "down" and well:
            backend.state = "up"

    async def _health(self, http: Request) -> Response:
        return Response(status_code=200 if any(each.state == "up" for each in self.backends) else 503)

    async def _metrics(self, http: Request) -> Response:
        names = ("taken", "answered", "refused", "failed", "left", "again")
        counts = {name: getattr(self, name) for name in names}
        lines = [f"# TYPE balancer_{name}_total counter\nbalancer_{name}_total {n}" for name, n in counts.items()]
        for name in ("up", "inside"):
            lines.append(f"# TYPE balancer_backend_{name} gauge")
            for each in self.backends:
                value = int(each.state == "up") if name == "up" else each.inside
                lines.append(f'balancer_backend_{name}{{backend="{each.url}"}} {value}')
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _serve(self, http: Request) -> Response:
        body = bytearray()
        async for part in http.stream():
            body += part
            if len(body) > self.most:
                return refusal(413, f"the body is larger than {self.most:,} bytes", "body_too_large")
        headers = {name: value for name, value in http.headers.items() if name in PASSED}
        asked = Asked.of(http.method, http.url.path, headers, bytes(body))
        self.taken += 1
        if not asked.streams:
            return await whole(self, asked)
        events = stream(self, asked)
        first = await anext(events)
        if isinstance(first, Response):  # refused before a word was written
            return first
        return StreamingResponse(_joined(first, events), media_type="text/event-stream")


async def _joined(first: str, rest: AsyncIterator[str | Response]) -> AsyncIterator[str]:
    yield first
    async for event in rest:
        assert isinstance(event, str)
        yield event


@contextmanager
def balanced(balancer: Balancer) -> Iterator[str]:
    """Run a balancer in a thread of this process, on a free port; its address."""
    import uvicorn

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(balancer.application(), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
