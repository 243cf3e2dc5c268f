"""What is told of an engine: when tokens came, and which places of its blocks are empty."""

from __future__ import annotations

import random

import pytest
from llm_core.generate import Sampling
from llm_serve import Engine, EngineConfig, Request
from llm_serve.engine.engine import Step
from llm_serve.engine.watch import Watched, attention_seconds, empty_places, under_traffic, watch
from tiny_models import alone, pair

PLAIN = EngineConfig(block_size=4, num_blocks=40, max_num_batched_tokens=32, enable_prefix_caching=False)


def greedy(*prompt: int, new: int = 6) -> Request:
    return Request(prompt, Sampling(max_new_tokens=new, temperature=0))


def test_a_late_request_is_watched_from_when_it_comes():
    early, late = [greedy(1, 2), greedy(3, new=9)], greedy(*range(5, 25), new=3)
    engine = Engine(pair()[1], None, PLAIN)
    seen = watch(engine, early, late, after=4)
    assert seen.tokens == {n: alone(pair()[0], each.prompt, each.sampling) for n, each in enumerate((*early, late))}
    ends = [step.begin + step.seconds for step in engine.log]
    assert seen.came == ends[3] and seen.seconds[1] == ends[:9] and seen.seconds[2] == ends[4:7]
    gaps = [ends[place + 1] - ends[place] for place in range(8)]
    assert seen.longest_gap([1]) == seen.longest_gap([0, 1]) == max(gaps)
    with pytest.raises(ValueError, match="after=0 must be at least 1"):
        watch(engine, early, late, after=0)
    engine.submit(late)
    with pytest.raises(ValueError, match="1 open"):
        watch(engine, early, late, after=1)


def test_traffic_is_served_in_any_order_of_coming():
    requests = [greedy(*range(1, 2 + n), new=1 + n % 5) for n in range(9)]
    expected = {n: alone(pair()[0], each.prompt, each.sampling) for n, each in enumerate(requests)}
    logs = []
    for seed in range(2):
        engine = Engine(pair()[1], None, PLAIN)
        assert under_traffic(engine, requests, random.Random(seed)).tokens == expected
        logs.append([step.tokens for step in engine.log])
    assert logs[0] != logs[1]


def test_empty_places_by_hand():
    # Blocks of 4. Request 0 holds 3, 4, 5 tokens and ends; request 1 holds 6 and 7, and ends with its third step.
    rows = [([(0, 3), (1, 6)], 3), ([(0, 1), (1, 1)], 3), ([(0, 1), (1, 1)], 2), ([(0, 1)], 0)]
    log = [Step(0, 0, tuple((n, 0, c, True) for n, c in tokens), (), 0, blocks) for tokens, blocks in rows]
    assert empty_places(log, 4) == pytest.approx((3 + 1 + 3) / 5)
    with pytest.raises(ValueError, match="longer than one step"):
        empty_places(log[:1], 4)


def test_empty_places_are_those_of_the_tables():
    engine, counted, rows = Engine(pair()[1], None, PLAIN), 0, 0
    for n in range(7):
        engine.submit(greedy(*range(1, 3 + 2 * n), new=5 + n))
    while engine.unfinished:
        engine.step()
        counted += sum(4 * len(each.table) - each.computed for each in engine.scheduler.running)
        rows += len(engine.scheduler.running)
    assert empty_places(engine.log, 4) == pytest.approx(counted / rows)


def test_attention_is_timed_call_by_call():
    engine = Engine(pair()[1], None, PLAIN)
    with attention_seconds() as spent:
        engine.run([greedy(1, 2, 3, new=4)])
    assert len(spent) == 4 * pair()[1].config.num_hidden_layers and min(spent) > 0
    assert sum(spent) < sum(step.seconds for step in engine.log)
    assert Watched().tokens == {}
