"""The HTTP interface: OpenAI's chat and completions, models, health, Prometheus' metrics, and a page to talk on."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from llm_serve.engine.engine import Engine
from llm_serve.engine.request import Request
from llm_serve.errors import QueueFull, RequestError
from llm_serve.server.metrics import Metrics
from llm_serve.server.protocol import Asked, ChatRequest, CompletionRequest, Reader, without_neutral
from llm_serve.server.replies import Replies
from llm_serve.server.settings import ServerConfig
from llm_serve.server.worker import EngineStopped, Ticket, Worker

Body = TypeVar("Body", bound=Asked)


class APIError(Exception):
    """A reply that is an error, in the form of OpenAI's interface."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None, retry: int = 0) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.status, self.headers = status, {"Retry-After": str(retry)} if retry else {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def application(engine: Engine, config: ServerConfig) -> FastAPI:
    """The server of an engine; `uvicorn.run` takes it. The engine starts and ends with it.

    Raises:
        ValueError: for an engine without a tokenizer, and an adapter with the model's name.
    """
    if engine.tokenizer is None:
        raise ValueError("the model has no tokenizer, and a server needs one; serve a folder that holds both")
    metrics = Metrics()
    worker = Worker(engine, metrics)
    adapters = () if engine.bank is None else tuple(name for name in engine.bank.names if name is not None)
    if config.model_name in adapters:
        raise ValueError(f"an adapter is called {config.model_name!r}, as the model is; give one of them another name")
    model = engine.model.config
    longest = min(model.max_position_embeddings, engine.config.num_blocks * engine.config.block_size)
    reader = Reader(engine.tokenizer, model.vocab_size, longest, config.model_name, adapters)
    seeds = itertools.count(time.time_ns() % 2**62)
    started = int(time.time())

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    app = FastAPI(title="llm-serve", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.worker = worker

    @app.exception_handler(APIError)
    async def told(http: HTTPRequest, error: APIError) -> JSONResponse:
        metrics.refused.labels(error.status).inc()
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(http: HTTPRequest, error: HTTPException) -> JSONResponse:
        what = f"{http.method} {http.url.path} is not served here"
        return await told(http, APIError(error.status_code, what, "not_found"))

    @app.exception_handler(Exception)
    async def failed(http: HTTPRequest, error: Exception) -> JSONResponse:
        return await told(http, APIError(500, f"the server failed: {type(error).__name__}", "internal_error"))

    def allow(http: HTTPRequest) -> None:
        given = http.headers.get("authorization", "")
        if config.api_key and not hmac.compare_digest(given.encode(), f"Bearer {config.api_key}".encode()):
            raise APIError(401, "the API key is missing or wrong; send Authorization: Bearer KEY", "invalid_api_key")

    async def read(http: HTTPRequest, kind: type[Body]) -> Body:
        allow(http)
        http.state.until = asyncio.get_running_loop().time() + config.request_seconds
        try:
            async with asyncio.timeout_at(http.state.until):
                body = await _body(http, config.max_body_bytes)
            asked = kind.model_validate(without_neutral(body))
        except TimeoutError:
            raise APIError(408, f"the body did not end within {config.request_seconds:g} s", "timeout") from None
        except ValidationError as error:
            first = error.errors()[0]
            param = ".".join(map(str, first["loc"]))
            extra = first["type"] == "extra_forbidden"
            what = "is no field that this server knows" if extra else f"is wrong: {first['msg']}"
            raise APIError(400, f"{param or 'the body'} {what}", "invalid_value", param or None) from None
        except RequestError as error:
            raise APIError(400, str(error), "unsupported_value") from None
        if asked.model != config.model_name and asked.model not in adapters:
            there = ", ".join((config.model_name, *adapters))
            raise APIError(
                404, f"no model is called {asked.model!r:.80}; there are {there}", "model_not_found", "model"
            )
        return asked

    late = f"not done within {config.request_seconds:g} s; ask for less"

    async def submit(make: Callable[[], Request], until: float) -> tuple[Request, Ticket]:
        try:
            async with asyncio.timeout_at(until):
                request = await asyncio.to_thread(make)  # a long prompt is not tokenized between others' words
                return request, await worker.submit(request)
        except TimeoutError:
            raise APIError(504, late, "timeout") from None
        except RequestError as error:
            long = "tokens" in str(error) and "room" in str(error)
            code = "context_length_exceeded" if long else "invalid_value"
            raise APIError(400, str(error), code) from None
        except QueueFull as error:
            raise APIError(429, str(error), "queue_full", retry=1) from None
        except EngineStopped as error:
            raise APIError(503, str(error), "engine_stopped") from None

    async def serve(http: HTTPRequest, asked: Asked, make: Callable[[], Request], chat: bool) -> Response:
        until: float = http.state.until
        request, ticket = await submit(make, until)
        replies = Replies(engine, asked, request, chat, f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}")
        if asked.stream:
            return StreamingResponse(
                _events(worker, ticket, replies, until, late, metrics), media_type="text/event-stream",
                headers={"Cache-Control": "no-cache"},
            )  # fmt: skip
        try:
            return JSONResponse(await _whole(http, worker, ticket, replies, until))
        except EngineStopped as error:
            raise APIError(503, str(error), "engine_stopped") from None
        except TimeoutError:
            raise APIError(504, late, "timeout") from None

    @app.post("/v1/chat/completions")
    async def chat(http: HTTPRequest) -> Response:
        asked = await read(http, ChatRequest)
        return await serve(http, asked, lambda: reader.chat(asked, lambda: next(seeds)), True)

    @app.post("/v1/completions")
    async def complete(http: HTTPRequest) -> Response:
        asked = await read(http, CompletionRequest)
        return await serve(http, asked, lambda: reader.completion(asked, lambda: next(seeds)), False)

    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "llm-serve",
                "max_model_len": longest}  # fmt: skip

    @app.get("/v1/models")
    async def models(http: HTTPRequest) -> dict[str, Any]:
        allow(http)
        return {"object": "list", "data": [card(name) for name in (config.model_name, *adapters)]}

    @app.get("/v1/models/{name:path}")
    async def one_model(http: HTTPRequest, name: str) -> dict[str, Any]:
        allow(http)
        if name not in (config.model_name, *adapters):
            raise APIError(404, f"no model is called {name!r:.80}", "model_not_found", "model")
        return card(name)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if worker.alive else 503)

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/")
    async def page() -> HTMLResponse:
        text = Path(__file__).with_name("chat.html").read_text("utf-8")
        return HTMLResponse(text.replace("{{MODEL}}", json.dumps(config.model_name).replace("<", "\\u003c")))

    return app


async def _body(http: HTTPRequest, most: int) -> dict[str, Any]:
    parts, size = [], 0
    async for part in http.stream():
        size += len(part)
        if size > most:
            raise APIError(413, f"the body is larger than {most:,} bytes", "body_too_large")
        parts.append(part)
    try:
        found = json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise APIError(400, f"the body is no JSON: {reason}", "invalid_json") from None
    if not isinstance(found, dict):
        raise APIError(400, "the body must be a JSON object", "invalid_json")
    return found


async def _whole(http: HTTPRequest, worker: Worker, ticket: Ticket, replies: Replies, until: float) -> dict[str, Any]:
    """The answers when all have ended; a caller who goes away before takes his request with him."""

    async def collect() -> None:
        async for deltas in ticket.deltas():
            replies.add(deltas)

    async def gone() -> None:
        while not await http.is_disconnected():
            await asyncio.sleep(0.2)

    work, leaving = asyncio.create_task(collect()), asyncio.create_task(gone())
    try:
        done, _ = await asyncio.wait(
            {work, leaving},
            timeout=max(0.0, until - asyncio.get_running_loop().time()),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if work in done:
            work.result()
            return replies.whole()
        if not done:
            raise TimeoutError
        return {}
    finally:
        work.cancel()
        leaving.cancel()
        if ticket.open and worker.alive:
            worker.cancel(ticket)


async def _events(
    worker: Worker, ticket: Ticket, replies: Replies, until: float, late: str, metrics: Metrics
) -> AsyncIterator[str]:  # fmt: skip
    """Server-sent events; a caller who goes away closes this generator, and his request ends.

    A failure is counted as one that has a status of its own: the 200 that was sent before says nothing of it.
    """
    try:
        async with asyncio.timeout_at(until):
            for event in replies.begin():
                yield _event(event)
            async for deltas in ticket.deltas():
                for event in replies.events(deltas):
                    yield _event(event)
        if (usage := replies.usage_event()) is not None:
            yield _event(usage)
        yield "data: [DONE]\n\n"
    except EngineStopped as error:
        metrics.refused.labels(503).inc()
        yield _event(APIError(503, str(error), "engine_stopped").body)
    except TimeoutError:
        metrics.refused.labels(504).inc()
        yield _event(APIError(504, late, "timeout").body)
    finally:
        if ticket.open and worker.alive:
            worker.cancel(ticket)


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
