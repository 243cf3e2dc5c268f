"""The exported folders, served: the library's own tokens over HTTP, and a load whose waits were predicted."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import httpx
from llm_core.generate import Sampling, generate_by_transformers, stop_ids
from llm_core.store.hf import tokenizer_of_folder
from llm_serve.bench import load
from llm_serve.server.child import ours, started

from course import check
from llm_ops.capacity.cluster import simulate
from llm_ops.capacity.costs import capacity
from llm_ops.capacity.requests import Arrival, figures, poisson, seen
from llm_ops.load.closed import closed_loop
from llm_ops.load.measure import Measured, measure, prompts, slower
from llm_ops.way.align import TOO_FEW
from llm_ops.way.data import asked_signatures, read_prompts
from llm_ops.way.export import LOOKED_AT, NEW_TOKENS, by_transformers, folder_of, questions
from llm_ops.way.settings import BABY, Settings
from llm_ops.way.stage import Made, Place

CALLERS, WORDS, NEW = 4, 8, 24  # of the load: at once, words of a prompt, tokens of an answer
SHARE = 0.5  # of the capacity: the rate of the open loop
# A server, its callers and whatever else this machine does share two cores, and a median of so few answers has a spread
# of its own. A law that is off by more than a factor of two is a wrong law.
FACTOR = 2.0


def run(place: Place) -> Made:
    """The stage."""
    facts, commands = {}, []
    for name in place.settings.models:
        folder = folder_of(place, name)
        command = ours(str(folder), "--served_model_name", name, "--max_num_seqs", str(CALLERS))
        with started(command) as url:
            _same_tokens(place, name, url)
            facts[name] = _loaded(place, name, url)
        commands.append(f"llm-serve export/{name} --served_model_name {name} --max_num_seqs {CALLERS}")
    return Made((), {}, tuple(commands), facts)


def _same_tokens(place: Place, name: str, url: str) -> None:
    """Greedy answers over HTTP beside transformers' own of the same folder."""
    folder = folder_of(place, name)
    theirs, tokenizer = by_transformers(folder), tokenizer_of_folder(folder)
    ends = tuple(sorted({*stop_ids(theirs), int(tokenizer.eos_token_id)}))
    ids = questions(place, name, tokenizer)[:LOOKED_AT]
    rows = generate_by_transformers(theirs, ids, Sampling(NEW_TOKENS, 0.0, stop_ids=ends), ends[0])
    wanted = [tokenizer.decode([each for each in row if each not in ends]) for row in rows]
    asked: list[dict[str, Any]]
    if name == BABY:
        asked = [{"prompt": each} for each in read_prompts(place)[:LOOKED_AT]]
    else:
        asked = [{"messages": each.question} for each in asked_signatures(place)[:LOOKED_AT]]
    found = []
    for fields in asked:
        way = "/v1/completions" if "prompt" in fields else "/v1/chat/completions"
        body = {"model": name, "temperature": 0, "max_tokens": NEW_TOKENS, **fields}
        reply = httpx.post(f"{url}{way}", json=body, timeout=120)
        reply.raise_for_status()
        choice = reply.json()["choices"][0]
        found.append(choice["text"] if "text" in choice else choice["message"]["content"])
    check.equal(f"{name}: the server's answers are transformers'", found, wanted)


def _loaded(place: Place, name: str, url: str) -> dict[str, Any]:
    """Costs of a step, the capacity that follows, and rounds of two loads that test it."""
    settings = place.settings
    seed, rounds = settings.seed, 3 if settings.learns else 1
    found = asyncio.run(measure(url, name, (1, 2, CALLERS), (4, WORDS, 4 * WORDS), NEW, rounds, seed=seed))
    each = [_round(url, name, settings, found, seed + 10_000 * number) for number in range(1, settings.rounds + 1)]
    failed = sum(one["failed"] for one in each)
    check.equal(f"{name}: requests that failed, of {2 * settings.requests * settings.rounds}", failed, 0)
    claim = check.when(settings.learns, TOO_FEW)
    for what, measured, predicted in (
        ("requests a second to so many callers", "closed_rate", "predicted_rate"),
        ("median of whole answers at half of the capacity", "whole_p50", "simulated_p50"),
    ):
        ratio = median(one[measured] / one[predicted] for one in each)
        claim.holds(f"{name}: {what}, within a factor of {FACTOR:g}", 1 / FACTOR < ratio < FACTOR,
                    f"measured over predicted {ratio:.2f}, the median of {settings.rounds} rounds")  # fmt: skip
    return {"costs": asdict(found.costs), **{key: median(one[key] for one in each) for key in each[0]}}


def _round(url: str, name: str, settings: Settings, found: Measured, seed: int) -> dict[str, float]:
    """A closed loop, and an open one at half of the capacity, each beside what the costs make of it."""
    count, costs = settings.requests, found.costs
    closed = asyncio.run(closed_loop(url, name, prompts(count, WORDS, NEW, seed), CALLERS))
    good = [each for each in closed if not each.error]
    most = capacity(costs, [each.read for each in good], [each.written for each in good], CALLERS)
    # What is beside the engine is work of the same process, done for one request at a time.
    callers_rate = 1 / (1 / most + costs.beside) / slower(closed, costs)
    seconds = max(each.ended for each in good) - min(each.sent for each in good)
    read = max(1, round(WORDS * found.tokens_per_word))
    arrivals = poisson(count, SHARE * callers_rate, (read, read), (NEW, NEW), seed)
    texts = prompts(count, WORDS, NEW, seed + 1)
    samples = asyncio.run(
        load(url, name, [replace(job, at=each.at) for each, job in zip(arrivals, texts, strict=True)])
    )
    told = [Arrival(job.at, max(1, one.read), max(1, one.written)) for job, one in zip(arrivals, samples, strict=True)]
    simulated = figures(simulate(told, costs.times(slower(samples, costs)), 1, CALLERS).served)
    return {
        "failed": sum(bool(each.error) for each in (*closed, *samples)), "capacity": most,
        "closed_rate": len(good) / seconds, "predicted_rate": callers_rate,
        "tokens_per_second": sum(each.written for each in good) / seconds, "rate": SHARE * callers_rate,
        "whole_p50": figures(seen(samples)).whole_p50, "simulated_p50": simulated.whole_p50,
    }  # fmt: skip
