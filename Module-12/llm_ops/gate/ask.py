"""Questions to a running server, and what its answers are worth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
from llm_align.tasks.task import Question

Score = Callable[[str, str], float]
"""A reward: (prompt, answer) -> from 0 to 1."""

PLAIN = "{question}"


def in_format(question: Question, wording: str) -> dict[str, Any]:
    """The fields of a request for a question, its last turn or its prompt worded anew.

    Raises:
        ValueError: for a wording without {question}.
    """
    if "{question}" not in wording:
        raise ValueError(f"the wording {wording!r} has no place for the question; write {{question}} where it stands")
    worded = wording.replace("{question}", question.text)
    if not question.messages:
        return {"prompt": worded}
    turns: list[Mapping[str, str]] = [*question.messages[:-1], {"role": "user", "content": worded}]
    return {"messages": [dict(each) for each in turns]}


async def scores(
    url: str, model: str, questions: Sequence[Question], score: Score, wording: str = PLAIN, max_tokens: int = 64,
    at_once: int = 8, api_key: str = "", seconds: float = 300.0,
) -> list[float]:  # fmt: skip
    """Ask each question once, greedily, and score the answer.

    Args:
        url: of a server with OpenAI's interface, without /v1.
        model: that requests name.
        questions: of a task.
        score: of (prompt, answer); the prompt is the question's own, whatever the wording.
        wording: of the last turn, with {question} in it.
        max_tokens: of an answer.
        at_once: questions that are open at a time.
        api_key: sent where it is not empty.
        seconds: that an answer may take.

    Raises:
        RuntimeError: when a question gets no answer: a missing score would make the others another set.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    places = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=seconds) as client:

        async def one(question: Question) -> float:
            fields = in_format(question, wording)
            path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
            body = {"model": model, "max_tokens": max_tokens, "temperature": 0, **fields}
            async with places:
                try:
                    reply = await client.post(path, json=body)
                except httpx.HTTPError as error:
                    raise RuntimeError(f"{url} did not answer a question of the gate: {type(error).__name__}") from None
            if reply.status_code != 200:
                raise RuntimeError(f"{url} refused a question of the gate: {reply.status_code} {reply.text[:160]}")
            choice = reply.json()["choices"][0]
            return score(question.text, choice["message"]["content"] if "message" in choice else choice["text"])

        return list(await asyncio.gather(*(one(each) for each in questions)))
