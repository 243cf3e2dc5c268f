"""Text from tokens, piece by piece: no half letters, and a stop text is found wherever tokens cut it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder gives for bytes that are not yet a letter


class TextStream:
    """The text of an answer as it grows.

    What is given out is never taken back: bytes that do not make a letter yet wait, and so does an end that a stop
    text could begin with.

    Args:
        decode: text of token ids, special tokens left out.
        stop: texts that end the answer.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self.decode, self.stop = decode, tuple(stop)
        self.stopped = False
        self._tokens: list[int] = []
        self._context = 0  # where the tokens begin that decode anew at each step: a token's text may depend on those
        self._known = 0  # tokens whose text was read
        self._held = ""  # read, not given out

    def push(self, token: int) -> str:
        """The text that a token settles; sets `stopped` when a stop text is complete."""
        self._tokens.append(token)
        return self._settle(self._read(final=False), final=False)

    def close(self) -> str:
        """What waited, at the end of an answer."""
        return "" if self.stopped else self._settle(self._read(final=True), final=True)

    def _read(self, final: bool) -> str:
        before = self.decode(self._tokens[self._context : self._known])
        now = self.decode(self._tokens[self._context :])
        if not final and (now.endswith(BROKEN) or len(now) <= len(before)):
            return ""
        self._context, self._known = self._known, len(self._tokens)
        return now[len(before) :]

    def _settle(self, new: str, final: bool) -> str:
        text = self._held + new
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        wait = 0 if final else max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - wait :]
        return text[: len(text) - wait]


def remembering(decode: Callable[[list[int]], str]) -> Callable[[list[int]], str]:
    """The same decoder, which keeps the texts of single tokens: an engine asks for them again and again."""
    known: dict[int, str] = {}

    def text_of(tokens: list[int]) -> str:
        if len(tokens) != 1:
            return decode(tokens)
        if tokens[0] not in known:
            known[tokens[0]] = decode(tokens)
        return known[tokens[0]]

    return text_of


def _overlap(text: str, stop: str) -> int:
    """How many of the last letters of a text a stop text begins with."""
    most = min(len(text), len(stop) - 1)
    return next((length for length in range(most, 0, -1) if text.endswith(stop[:length])), 0)
