"""A closed loop: so many callers, each of whom sends the next request when the last is answered.

It is polite: a slow server is asked less. Its waits say nothing of callers who do not know of each other, for whom
`llm_serve.bench.load` is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from llm_serve.bench import Job, Sample, load


async def closed_loop(
    url: str, model: str, work: Sequence[Job], callers: int, api_key: str = "", limit: float = 600.0
) -> list[Sample]:
    """Share the jobs among callers; the jobs' own times are not looked at.

    Args:
        url: of a server with OpenAI's interface, without /v1.
        model: that requests name.
        work: what to send.
        callers: how many ask at once.
        api_key: sent where it is not empty.
        limit: seconds that a request may take.

    Raises:
        ValueError: for no caller.
    """
    if callers < 1:
        raise ValueError(f"callers={callers} must be at least 1")
    begin, rest = time.perf_counter(), list(enumerate(work))[::-1]
    found: dict[int, Sample] = {}

    async def caller() -> None:
        while rest:
            number, job = rest.pop()
            since = time.perf_counter() - begin
            (sample,) = await load(url, model, [replace(job, at=0.0)], api_key, limit)
            sample.sent += since
            sample.ended += since
            sample.tokens = [each + since for each in sample.tokens]
            found[number] = sample

    await asyncio.gather(*(caller() for _ in range(callers)))
    return [found[number] for number in range(len(work))]
