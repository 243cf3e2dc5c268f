"""What OpenAI's interface asks for, made into requests of the engine, and what cannot be done refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from llm_core.generate import Sampling, encode_prompt
from llm_data.tokenizers.pretokenize import refuse_surrogates
from llm_peft.chat.template import prompt_ids
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerFast

from llm_serve.engine.request import Constraint, Request
from llm_serve.errors import RequestError

MOST_STOPS, MOST_LOGPROBS = 4, 20  # OpenAI's own limits
# What this server does not do, and the values of each that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}), "tools": (None, []),
    "tool_choice": (None, "none", "auto"), "parallel_tool_calls": (None, True, False), "functions": (None, []),
    "function_call": (None, "none", "auto"), "best_of": (None, 1), "suffix": (None, ""), "audio": (None,),
    "modalities": (None, ["text"]), "store": (None, False), "metadata": (None, {}), "service_tier": (None, "auto"),
    "prediction": (None,), "reasoning_effort": (None,), "web_search_options": (None,),
}  # fmt: skip


class Strict(BaseModel):
    """Types are what they say: a number in quotes is none."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """Of a streamed answer."""

    include_usage: bool = False


class JSONSchema(Strict):
    """A named schema; `schema` is one of JSON Schema."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """Text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class TextPart(Strict):
    """A part of a message; pictures and sounds are not read."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant", "developer"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Asked(Strict):
    """What chat and completion have in common. Beside OpenAI's: `top_k`, `repetition_penalty` and `priority` as vLLM
    has them."""

    model: str
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0)
    n: int = Field(default=1, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    response_format: ResponseFormat | None = None
    priority: int = Field(default=0, ge=-100, le=100)  # or one caller would stand before all others for ever
    user: str | None = None

    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        found = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if len(found) > MOST_STOPS:
            raise RequestError(f"stop has {len(found)} texts; at most {MOST_STOPS} are looked for")
        return found


class ChatRequest(Asked):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)


class CompletionRequest(Asked):
    """`POST /v1/completions`."""

    prompt: str | list[int] | list[str]
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=5)


class Reader:
    """Makes requests of the engine.

    Args:
        tokenizer: of the model.
        rows: of its vocabulary.
        positions: that an answer may reach: those of the model, or fewer where the cache has room for fewer.
        name: that it is served under.
        adapters: names of adapters, which are asked for as models are.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, rows: int, positions: int, name: str, adapters: tuple[str, ...] = ()
    ) -> None:
        self.tokenizer, self.rows, self.positions, self.name, self.adapters = tokenizer, rows, positions, name, adapters

    def chat(self, asked: ChatRequest, seed: Callable[[], int]) -> Request:
        """Of a conversation.

        Raises:
            RequestError: with what cannot be done.
        """
        if self.tokenizer.chat_template is None:
            raise RequestError("this model has no chat template; use /v1/completions")
        if asked.top_logprobs is not None and not asked.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true")
        if asked.max_tokens is not None and asked.max_completion_tokens is not None:
            raise RequestError("max_tokens and max_completion_tokens are two names of one number; give one")
        messages = [message.plain() for message in asked.messages]
        try:
            for message in messages:
                refuse_surrogates(message["content"])
            prompt = tuple(prompt_ids(messages, self.tokenizer))
        except ValueError as error:
            raise RequestError(str(error)) from None
        most = asked.max_completion_tokens or asked.max_tokens or max(1, self.positions - len(prompt))
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        return self._request(asked, prompt, most, logprobs, seed)

    def completion(self, asked: CompletionRequest, seed: Callable[[], int]) -> Request:
        """Of a text to go on from.

        Raises:
            RequestError: with what cannot be done.
        """
        given = asked.prompt
        if asked.echo:
            raise RequestError("echo is not done here; put the prompt before the answer yourself")
        if isinstance(given, list) and given and isinstance(given[0], str):
            if len(given) != 1:
                raise RequestError(f"{len(given)} prompts in one request; send one each, they are computed together")
            given = given[0]
        try:
            ids = tuple(encode_prompt(self.tokenizer, given)) if isinstance(given, str) else tuple(given)
        except ValueError as error:
            raise RequestError(str(error)) from None
        return self._request(asked, ids, asked.max_tokens or 16, asked.logprobs, seed)  # type: ignore[arg-type]

    def _request(
        self, asked: Asked, prompt: tuple[int, ...], most: int, logprobs: int | None, seed: Callable[[], int]
    ) -> Request:
        if asked.stream_options is not None and not asked.stream:
            raise RequestError("stream_options needs stream to be true")
        try:
            sampling = Sampling(
                max_new_tokens=most, temperature=float(asked.temperature), top_k=asked.top_k, top_p=float(asked.top_p),
                repetition_penalty=float(asked.repetition_penalty), seed=seed() if asked.seed is None else asked.seed,
            )  # fmt: skip
        except ValueError as error:
            raise RequestError(str(error)) from None
        adapter = None if asked.model == self.name else asked.model
        return Request(
            prompt, sampling, asked.stops(), asked.n, logprobs, asked.priority, adapter, self._constraint(asked)
        )

    def _constraint(self, asked: Asked) -> Constraint | None:
        wanted = asked.response_format
        if wanted is None or wanted.type == "text":
            return None
        from llm_serve.structured.grammar import json_schema

        if wanted.type == "json_object":
            return json_schema(self.tokenizer, None, self.rows)
        if wanted.json_schema is None or wanted.json_schema.schema_ is None:
            raise RequestError('response_format of type "json_schema" needs json_schema.schema')
        return json_schema(self.tokenizer, wanted.json_schema.schema_, self.rows)


def without_neutral(body: dict[str, Any]) -> dict[str, Any]:
    """A body without the fields that ask for nothing.

    Raises:
        RequestError: for one that asks for what is not done here.
    """
    for name, neutral in NEUTRAL.items():
        if name in body and body[name] not in neutral:
            raise RequestError(f"{name}={body[name]!r:.60} is not done by this server; leave it out")
    return {key: value for key, value in body.items() if key not in NEUTRAL and value is not None}
