"""The way of one request through a balancer: a request that was taken is answered, also when its replica dies.

An answer that comes in one piece is asked for again. Of a stream, the text that the caller has is not sent again. That
is right only because replicas write the same text for the same request, drawn answers too: the request gets a seed. The
new text is compared with the old, and an answer that parts from it ends with an error in place of a wrong join.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
from starlette.responses import JSONResponse, Response

if TYPE_CHECKING:
    from llm_ops.service.balancer import Backend, Balancer

ELSEWHERE = (429, 502, 503)  # another replica may say something else


class Lost(Exception):
    """A replica broke off."""


@dataclass(frozen=True)
class Asked:
    """A request as it is sent to a replica.

    Attributes:
        method, path, headers, body: of HTTP.
        streams: whether the answer comes in pieces.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    streams: bool = False

    @classmethod
    def of(cls, method: str, path: str, headers: dict[str, str], body: bytes) -> Asked:
        """A request as it came; one that draws gets a seed, so that another replica draws the same."""
        try:
            found = json.loads(body) if body else None
        except ValueError:
            found = None  # the replica says what is wrong with it
        if not isinstance(found, dict):
            return cls(method, path, headers, body)
        if found.get("seed") is None and found.get("temperature", 1) != 0:
            found["seed"] = random.getrandbits(31)
        return cls(method, path, headers, json.dumps(found).encode(), found.get("stream") is True)


def refusal(status: int, message: str, code: str) -> JSONResponse:
    """An error in the form of OpenAI's interface."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def nobody() -> JSONResponse:
    """What a caller is told when no replica is left for him."""
    return refusal(503, "no replica is ready; try again", "no_replica")


async def whole(balancer: Balancer, asked: Asked) -> Response:
    """An answer in one piece."""
    tried: list[Backend] = []
    last: Response | None = None
    while len(tried) < balancer.tries and (backend := balancer.pick(tried)) is not None:
        tried.append(backend)
        balancer.again += len(tried) > 1
        backend.inside += 1
        try:
            reply = await balancer.client.request(
                asked.method, backend.url + asked.path, headers=asked.headers, content=asked.body
            )
        except httpx.TimeoutException:
            last = refusal(504, f"not done within {balancer.seconds:g} s", "timeout")
            break
        except httpx.TransportError:
            balancer.lost(backend)
            continue
        finally:
            backend.inside -= 1
        kept = {name: reply.headers[name] for name in ("content-type", "retry-after") if name in reply.headers}
        last = Response(reply.content, reply.status_code, kept)
        if reply.status_code not in ELSEWHERE:
            backend.answered += reply.status_code < 400
            break
    last = last or nobody()
    balancer.count(last.status_code)
    return last


@dataclass
class Text:
    """The text that a caller has of a stream, and how much of it a new replica has yet to write again.

    Attributes:
        sent: that he has.
        again: part of it that comes once more.
        events: that he has.
    """

    sent: str = ""
    again: str = ""
    events: int = 0

    def cut(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """An event without what the caller has; None where nothing is left.

        Raises:
            ValueError: when another text comes than the caller has.
        """
        choices = event.get("choices") or [{}]
        holder = choices[0].get("delta", choices[0])
        key = "content" if "delta" in choices[0] else "text"
        new = holder.get(key) or ""
        repeated = len(self.again) > 0 or (self.events and not new and not choices[0].get("finish_reason"))
        both = min(len(new), len(self.again))
        if new[:both] != self.again[:both]:
            raise ValueError("a replica was lost, and another wrote another text; ask again")
        self.again, rest = self.again[both:], new[both:]
        if repeated and not rest and not choices[0].get("finish_reason") and not event.get("usage"):
            return None
        if new:
            holder[key] = rest
        self.sent += rest
        return event


async def stream(balancer: Balancer, asked: Asked) -> AsyncIterator[str | Response]:
    """An answer piece by piece: events, or before the first one a refusal."""
    text, tried = Text(), list["Backend"]()
    last: Response | None = None
    while len(tried) < balancer.tries and (backend := balancer.pick(tried)) is not None:
        tried.append(backend)
        balancer.again += len(tried) > 1
        backend.inside += 1
        text.again = text.sent
        try:
            async with balancer.client.stream(
                asked.method, backend.url + asked.path, headers=asked.headers, content=asked.body
            ) as reply:
                if reply.status_code != 200:
                    last = Response(await reply.aread(), reply.status_code, {"content-type": "application/json"})
                    if reply.status_code in ELSEWHERE:
                        continue
                    break
                async for event in _events(reply):
                    if (kept := text.cut(event)) is not None:
                        text.events += 1
                        yield _line(kept)
            yield "data: [DONE]\n\n"
            backend.answered += 1
            balancer.count(200)
            return
        except httpx.TimeoutException:
            last = refusal(504, f"not done within {balancer.seconds:g} s", "timeout")
            break
        except (httpx.TransportError, Lost):
            balancer.lost(backend)
        except (GeneratorExit, asyncio.CancelledError):
            balancer.left += 1
            raise
        except ValueError as error:
            last = refusal(502, str(error), "parted")
            break
        finally:
            backend.inside -= 1
    last = last or nobody()
    balancer.count(last.status_code)
    yield last if not text.events else f"data: {bytes(last.body).decode()}\n\n"


async def _events(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream up to its end.

    Raises:
        Lost: when it breaks off, or when the engine behind it does.
    """
    async for line in reply.aiter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data:"):
            event = json.loads(line.removeprefix("data:"))
            if event.get("error", {}).get("code") == "engine_stopped":
                raise Lost
            yield event
    raise Lost


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"
