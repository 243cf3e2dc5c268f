"""A server under load: requests at times of their own, whatever the server does (an open loop), and what each waited.

A client that sends its next request when the last is answered (a closed loop) waits politely for a slow server, and
never sees the queue that others would stand in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from course.terminal import options_of, parse

WORDS = ("the", "a", "of", "one", "two", "red", "house", "sees", "goes", "far")


@dataclass(frozen=True)
class Job:
    """A request to send: seconds after the start, its text, and the tokens that are wanted."""

    at: float
    prompt: str
    max_tokens: int


@dataclass
class Sample:
    """What became of one.

    Attributes:
        sent: seconds after the start.
        tokens: seconds after the start of each event that brought text.
        ended: seconds after the start at which the answer was whole.
        written: tokens, as the server counts them.
        read: tokens of the prompt, likewise; 0 where it does not say.
        text: that was written.
        error: in words, where there is no whole answer.
    """

    sent: float
    tokens: list[float] = field(default_factory=list)
    ended: float = 0.0
    written: int = 0
    read: int = 0
    text: str = ""
    error: str = ""


@dataclass(frozen=True)
class Summary:
    """Figures of a load; seconds are (median, 99th of 100), and nan where there are none.

    Attributes:
        answered: whole answers.
        failed: others.
        seconds: from the first request to the last answer.
        tokens_per_second: written, of whole answers.
        first: time to first token.
        between: time from one token to the next.
        whole: time of a request.
    """

    answered: int
    failed: int
    seconds: float
    tokens_per_second: float
    first: tuple[float, float]
    between: tuple[float, float]
    whole: tuple[float, float]


def jobs(count: int, rate: float, prompt_words: int, max_tokens: int, seed: int = 0) -> list[Job]:
    """Requests at Poisson times (all at once for rate 0), half to one and a half times the wanted lengths."""
    dice, now, found = random.Random(seed), 0.0, []
    for number in range(count):
        now += dice.expovariate(rate) if rate else 0.0
        more = max(1, round(prompt_words * dice.uniform(0.5, 1.5))) - 1
        words = [str(number), *dice.choices(WORDS, k=more)]  # none begins as another: no prefix is found
        found.append(Job(now, " ".join(words), max(1, round(max_tokens * dice.uniform(0.5, 1.5)))))
    return found


async def load(url: str, model: str, work: Sequence[Job], api_key: str = "", limit: float = 600.0) -> list[Sample]:
    """Send each job at its time to `POST /v1/completions`, streamed and greedy, and note when its tokens come.

    Any server with OpenAI's interface does.

    Args:
        url: of the server, without /v1.
        model: that requests name.
        work: what to send.
        api_key: sent where it is not empty.
        limit: seconds that a request may take.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    ways = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=limit, limits=ways) as client:
        begin = time.perf_counter()
        return list(await asyncio.gather(*(_one(client, model, each, begin, limit) for each in work)))


async def _one(client: httpx.AsyncClient, model: str, job: Job, begin: float, limit: float) -> Sample:
    await asyncio.sleep(max(0.0, job.at - (time.perf_counter() - begin)))
    sample = Sample(time.perf_counter() - begin)
    try:
        async with asyncio.timeout(limit):  # of the whole: httpx's own begins anew with each piece
            await _ask(client, model, job, begin, sample)
    except TimeoutError:
        sample.error = f"not done within {limit:g} s"
    except httpx.HTTPError as error:
        sample.error = f"{type(error).__name__}: {error}"
    except json.JSONDecodeError as error:
        sample.error = f"an event is no JSON: {error}"
    return sample


async def _ask(client: httpx.AsyncClient, model: str, job: Job, begin: float, sample: Sample) -> None:
    """Send a job, and note in its sample what comes."""
    body = {"model": model, "prompt": job.prompt, "max_tokens": job.max_tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    ended = False
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        if reply.status_code != 200:
            text = (await reply.aread()).decode(errors="replace")
            sample.error = f"{reply.status_code}: {text[:200]}"
            return
        async for line in reply.aiter_lines():
            data = line.removeprefix("data:").strip()
            ended = ended or data == "[DONE]"
            if not line.startswith("data:") or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                wrong = event["error"]
                sample.error = str(wrong.get("message", wrong) if isinstance(wrong, dict) else wrong)
                return
            choice = event["choices"][0] if event.get("choices") else {}
            ended = ended or bool(choice.get("finish_reason"))
            if choice.get("text"):
                sample.text += choice["text"]
                sample.tokens.append(time.perf_counter() - begin)
            if event.get("usage"):
                sample.written = int(event["usage"]["completion_tokens"])
                sample.read = int(event["usage"].get("prompt_tokens", 0))
    if not ended:
        sample.error = "the stream broke off before the answer's end"
    sample.ended = time.perf_counter() - begin
    sample.written = sample.written or len(sample.tokens)  # for a server that does not count


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; nan of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def summary(samples: Sequence[Sample]) -> Summary:
    """The figures of a load."""
    good = [each for each in samples if not each.error]
    first = [each.tokens[0] - each.sent for each in good if each.tokens]
    between = [b - a for each in good for a, b in zip(each.tokens, each.tokens[1:], strict=False)]
    whole = [each.ended - each.sent for each in good]
    seconds = max(each.ended for each in good) - min(each.sent for each in samples) if good else 0.0
    speed = sum(each.written for each in good) / seconds if good else 0.0

    def both(values: list[float]) -> tuple[float, float]:
        return percentile(values, 0.5), percentile(values, 0.99)

    return Summary(len(good), len(samples) - len(good), seconds, speed, both(first), both(between), both(whole))


def main(arguments: Sequence[str]) -> int:
    """`llm-serve bench`; the exit code is 1 where a request got no whole answer."""
    parser: argparse.ArgumentParser = options_of("llm-serve bench")
    parser.add_argument("url", help="of a server with OpenAI's interface, such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="what requests name; the server's first by default")
    parser.add_argument("--api_key", default="")
    parser.add_argument("--requests", type=int, default=32, help="how many (32)")
    parser.add_argument("--rate", type=float, default=0.0, help="a second, at Poisson times; 0 for all at once (0)")
    parser.add_argument("--prompt_words", type=int, default=50, help="of a prompt, on average (50)")
    parser.add_argument("--max_tokens", type=int, default=50, help="of an answer, on average (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts; a server that has seen them is faster (0)")
    options = parse(parser, arguments)
    if min(options.requests, options.prompt_words, options.max_tokens) < 1 or not 0 <= options.rate < math.inf:
        raise ValueError("--requests, --prompt_words and --max_tokens must be at least 1, and --rate 0 or more")
    url = options.url.rstrip("/")
    model = options.model or first_model(url, options.api_key)
    work = jobs(options.requests, options.rate, options.prompt_words, options.max_tokens, options.seed)
    samples = asyncio.run(load(url, model, work, options.api_key))
    found = summary(samples)
    print(
        f"{found.answered} answered, {found.failed} not, in {found.seconds:.1f} s: "
        f"{found.tokens_per_second:.1f} tokens/s"
    )
    for name, (median, most) in (
        ("time to first token", found.first), ("time from token to token", found.between), ("whole answer", found.whole)
    ):  # fmt: skip
        print(f"{name:<25} median {median * 1e3:8.0f} ms, 99 of 100 within {most * 1e3:8.0f} ms")
    for error in sorted({each.error for each in samples if each.error}):
        print(f"not answered: {error}")
    return 1 if found.failed else 0


def first_model(url: str, api_key: str) -> str:
    """The first model that a server names.

    Raises:
        ValueError: when it names none.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        reply = httpx.get(f"{url}/v1/models", headers=headers, timeout=30).json()
        return str(reply["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{url} names no model ({type(error).__name__}); give --model, or another address") from None
