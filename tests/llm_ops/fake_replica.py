"""A replica that writes words by rule and fails on order: what a balancer does is then seen without a model."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Fake:
    """Attributes:
    voice: what its words begin with; replicas of one model have one voice.
    breaks_at: words after which it breaks off; None for never.
    status: what it answers with; 200 for well.
    well: what `/health` says.
    pause: seconds between words.
    asked: requests that came.
    """

    voice: str = "w"
    breaks_at: int | None = None
    status: int = 200
    well: bool = True
    pause: float = 0.0
    asked: int = 0

    def words(self, body: dict) -> list[str]:
        return [f"{self.voice}{body.get('seed', 0)}-{n} " for n in range(body.get("max_tokens", 4))]

    async def complete(self, http: Request) -> Response:
        self.asked += 1
        try:
            body = dict(await http.json())
        except (TypeError, ValueError):
            return JSONResponse({"error": {"message": "no JSON object", "code": "invalid_json"}}, 400)
        if self.status != 200:
            return JSONResponse({"error": {"message": f"status {self.status}", "code": "told"}}, self.status)
        words = self.words(body)
        if not body.get("stream"):
            await asyncio.sleep(self.pause * len(words))
            if self.breaks_at is not None:
                return StreamingResponse(self.half(), headers={"content-length": "100"})
            return JSONResponse({"choices": [{"text": "".join(words)}], "seed": body.get("seed")})
        chat = "chat" in http.url.path

        async def events():
            if chat:
                yield self.event({"delta": {"role": "assistant"}})
            for n, word in enumerate(words):
                if n == self.breaks_at:
                    raise RuntimeError("the replica breaks off")
                await asyncio.sleep(self.pause)
                yield self.event({"delta": {"content": word}} if chat else {"text": word})
            yield self.event(
                {"delta": {}, "finish_reason": "length"} if chat else {"text": "", "finish_reason": "length"}
            )
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @staticmethod
    async def half():
        yield '{"choices": '
        raise RuntimeError("the replica breaks off")

    @staticmethod
    def event(choice: dict) -> str:
        return f"data: {json.dumps({'choices': [{'index': 0, **choice}]})}\n\n"

    async def health(self, http: Request) -> Response:
        return Response(status_code=200 if self.well else 503)


@contextmanager
def running(fake: Fake) -> Iterator[str]:
    """Its address while it runs."""
    routes = [
        Route("/v1/completions", fake.complete, methods=["POST"]), Route("/health", fake.health),
        Route("/v1/chat/completions", fake.complete, methods=["POST"]),
    ]  # fmt: skip
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()
