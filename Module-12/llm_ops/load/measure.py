"""What a server's steps cost, measured from outside: any server with OpenAI's interface, ours or another."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from llm_serve.bench import WORDS, Job, Sample

from llm_ops.capacity.costs import StepCosts, Timed, fit
from llm_ops.load.closed import closed_loop


@dataclass(frozen=True)
class Measured:
    """What was measured of a server.

    Attributes:
        costs: of a step.
        times: what the costs were fitted to.
        tokens_per_word: of a prompt of `prompts`.
    """

    costs: StepCosts
    times: tuple[Timed, ...]
    tokens_per_word: float


def prompts(count: int, words: int, max_tokens: int, seed: int) -> list[Job]:
    """Requests of one length, none of which begins as another does: a prefix cache finds nothing."""
    dice = random.Random(seed)
    return [
        Job(0.0, " ".join([str(dice.randrange(10**6)), *dice.choices(WORDS, k=words - 1)]), max_tokens)
        for _ in range(count)
    ]


async def measure(
    url: str, model: str, batches: Sequence[int], words: Sequence[int], new: int = 16, rounds: int = 5,
    api_key: str = "", seed: int = 0,
) -> Measured:  # fmt: skip
    """Time first tokens of prompts of several lengths, alone, and the time from token to token of several callers.

    A first token takes a step with the prompt in it, and what is beside the engine; a later one a step with all callers
    in it. The fixed cost of a step is in both: what a first token takes more is beside.

    Args:
        url: of the server, without /v1; nobody else may ask it.
        model: that requests name.
        batches: callers at once; two different numbers at least, up to what a step of the server takes.
        words: of prompts, two different numbers at least; shorter than a step's tokens.
        new: tokens of an answer.
        rounds: requests of each kind.
        api_key: sent where it is not empty.
        seed: of the prompts.

    Raises:
        ValueError: for kinds that do not tell the costs apart.
        RuntimeError: when the server fails a request.
    """
    if len(set(batches)) < 2 or len(set(words)) < 2 or new < 2 or rounds < 1:
        raise ValueError(
            "give two numbers of callers, two lengths of prompts, answers of 2 tokens and a round at least"
        )
    times, ratios = [], []
    await _asked(url, model, prompts(2, min(words), new, seed), 1, api_key)  # the first steps are slower
    for number, length in enumerate(words):
        found = await _asked(url, model, prompts(rounds, length, 1, seed + 1 + number), 1, api_key)
        waited = median(each.tokens[0] - each.sent for each in found)
        times.append(Timed(0, round(median(each.read for each in found)), waited, outside=True))
        ratios += [each.read / length for each in found]
    for number, callers in enumerate(batches):
        work = prompts(callers * rounds, min(words), new, seed + 100 + number)
        found = await _asked(url, model, work, callers, api_key)
        times += [pace for each in found if (pace := pace_of(each, found)) is not None]
    return Measured(fit(times), tuple(times), median(ratios))


def slower(samples: Sequence[Sample], costs: StepCosts) -> float:
    """How many times as long as by its costs a server's steps took under a load.

    Each answer's seconds from token to token are compared with those of the same steps by the costs, and the median is
    taken: what is left is the machine itself, which other programs use too.

    Args:
        samples: all requests that the server had.
        costs: of it.

    Raises:
        ValueError: when no answer has two tokens.
    """
    paces = [pace for each in samples if not each.error and (pace := pace_of(each, samples)) is not None]
    if not paces:
        raise ValueError("no answer has two tokens; ask for longer ones")
    return median(each.seconds / costs.seconds(each.writing, each.prompt_tokens) for each in paces)


def pace_of(one: Sample, all_of_them: Sequence[Sample]) -> Timed | None:
    """Seconds from token to token of an answer, with what else was in its steps: others' words and others' prompts."""
    if one.written < 2 or len(one.tokens) < 2:
        return None
    first, last, steps = one.tokens[0], one.tokens[-1], one.written - 1
    words = sum(first < at <= last for each in all_of_them for at in each.tokens[1:])
    read = sum(each.read for each in all_of_them if each.tokens and first < each.tokens[0] <= last)
    return Timed(words / steps, read / steps, (last - first) / steps) if last > first else None


async def _asked(url: str, model: str, work: Sequence[Job], callers: int, api_key: str) -> list[Sample]:
    found = await closed_loop(url, model, work, callers, api_key)
    wrong = next((each.error for each in found if each.error), "")
    if wrong:
        raise RuntimeError(f"{url} failed a request of the measurement: {wrong}")
    return found
