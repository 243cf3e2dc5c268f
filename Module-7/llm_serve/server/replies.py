"""Answers in the form of OpenAI's interface, whole or as events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from llm_serve.engine.engine import Answer, Delta, Engine, answer
from llm_serve.engine.request import Finish, Request, TokenLogprobs
from llm_serve.engine.text import BROKEN
from llm_serve.server.protocol import Asked


class Replies:
    """What one request is answered with.

    Args:
        engine: that answers; its tokenizer says what tokens are.
        asked: what came.
        request: what was made of it.
        chat: whether it is a conversation.
        name: of the reply.
    """

    def __init__(self, engine: Engine, asked: Asked, request: Request, chat: bool, name: str) -> None:
        self.engine, self.asked, self.request, self.chat = engine, asked, request, chat
        self.parts: list[list[Delta]] = [[] for _ in range(request.n)]
        self.written = 0
        kind = "chat.completion" if chat else "text_completion"
        self._head = {"id": name, "object": kind, "created": int(time.time()), "model": asked.model}

    def add(self, deltas: Sequence[Delta]) -> None:
        """Keep what a step wrote."""
        for delta in deltas:
            self.parts[delta.index].append(delta)
            self.written += delta.token is not None

    def whole(self) -> dict[str, Any]:
        """The reply when all has ended."""
        choices = [self._choice(index, answer(parts)) for index, parts in enumerate(self.parts)]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _choice(self, index: int, found: Answer) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": found.text}} if self.chat else {"text": found.text}
        logprobs = self._logprobs(found.logprobs) if found.logprobs else None
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": _reason(found.finish)}

    def _usage(self) -> dict[str, int]:
        prompt = len(self.request.prompt)
        return {"prompt_tokens": prompt, "completion_tokens": self.written, "total_tokens": prompt + self.written}

    def begin(self) -> Iterator[dict[str, Any]]:
        """What comes before the first token: in a chat, who speaks."""
        for index in range(self.request.n if self.chat else 0):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def events(self, deltas: Sequence[Delta]) -> Iterator[dict[str, Any]]:
        """What a step wrote, as events."""
        self.add(deltas)
        for delta in deltas:
            logprobs = None if delta.logprobs is None else self._logprobs((delta.logprobs,))
            finish = None if delta.finish is None else _reason(delta.finish)
            if delta.text or logprobs or finish:
                yield self._chunk(delta.index, {"content": delta.text} if delta.text else {}, finish, logprobs)

    def usage_event(self) -> dict[str, Any] | None:
        """The last event, where it was asked for."""
        options = self.asked.stream_options
        if options is None or not options.include_usage:
            return None
        return {**self._event_head(), "choices": [], "usage": self._usage()}

    def _event_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"} if self.chat else self._head

    def _chunk(
        self, index: int, said: dict[str, Any], finish: str | None, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        body = {"delta": said} if self.chat else {"text": said.get("content", "")}
        choice = {"index": index, **body, "logprobs": logprobs, "finish_reason": finish}
        return {**self._event_head(), "choices": [choice]}

    def _logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        if self.chat:
            return {"content": [
                {**self._token(each.token, each.logprob), "top_logprobs": [self._token(*one) for one in each.top]}
                for each in found
            ]}  # fmt: skip
        return {
            "tokens": [self._text(each.token) for each in found],
            "token_logprobs": [each.logprob for each in found],
            "top_logprobs": [{self._text(token): value for token, value in each.top} for each in found],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        # A part of a letter: what its bytes are the tokenizer does not tell, and None is OpenAI's word for that.
        known = None if BROKEN in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": known}

    def _text(self, token: int) -> str:
        assert self.engine.tokenizer is not None
        return str(self.engine.tokenizer.decode([token]))


def _reason(finish: Finish) -> str:
    """An answer that a grammar could not end, or that was cancelled, is one that was cut."""
    return finish.value if finish in (Finish.STOP, Finish.LENGTH) else "length"
