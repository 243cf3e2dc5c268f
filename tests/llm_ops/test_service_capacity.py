"""Laws of queues, the cost of steps, and simulated replicas: against formulas, and against Module 7's engine itself."""

import math
import random
import statistics
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llm_core.config import GPTConfig
from llm_core.generate import Sampling
from llm_core.model import GPT
from llm_ops.capacity.cluster import CHOICES, Autoscaler, Failures, simulate
from llm_ops.capacity.costs import StepCosts, Timed, capacity, fit
from llm_ops.capacity.laws import erlang_c, little, mean_wait, wait_percentile, waits_longer
from llm_ops.capacity.replica import Live, Replica
from llm_ops.capacity.requests import Arrival, Served, figures, poisson
from llm_serve.engine.config import EngineConfig
from llm_serve.engine.engine import Engine
from llm_serve.engine.request import Request

COSTS = StepCosts(0.03, 0.004, 0.001)


def test_erlangs_formula_as_it_is_printed():
    busy, servers = 3.2, 5
    terms = [busy**k / math.factorial(k) for k in range(servers)]
    last = busy**servers / math.factorial(servers) / (1 - busy / servers)
    assert erlang_c(busy / servers, servers) == pytest.approx(last / (sum(terms) + last), rel=1e-12)
    assert erlang_c(0.7, 1) == pytest.approx(0.7)  # one server: whoever finds it busy waits


def test_a_percentile_is_the_wait_that_so_many_exceed():
    wait = wait_percentile(0.99, rate=7, capacity=2, servers=4)
    assert waits_longer(wait, 7, 2, 4) == pytest.approx(0.01)
    assert wait_percentile(0.5, rate=0.1, capacity=2, servers=4) == 0  # half never wait


@pytest.mark.parametrize("variation", [0.0, 1.0])
def test_the_mean_wait_of_one_server(variation):
    """Lindley's recursion: who comes waits for what the one before left."""
    dice, wait, waits = random.Random(0), 0.0, []
    for _ in range(200_000):
        waits.append(wait)
        service = dice.expovariate(1.0) if variation else 1.0
        wait = max(0.0, wait + service - dice.expovariate(0.7))
    assert statistics.fmean(waits) == pytest.approx(mean_wait(0.7, 1.0, variation), rel=0.06)


@pytest.mark.parametrize("wrong", [
    lambda: erlang_c(1.0, 2), lambda: erlang_c(0.5, 0), lambda: mean_wait(2, 0.5), lambda: little(-1, 2),
    lambda: wait_percentile(1.0, 1, 2), lambda: StepCosts(0, 0, 0), lambda: StepCosts(float("nan"), 1, 1),
    lambda: fit([Timed(1, 0, 0.1)] * 5), lambda: fit([Timed(1, 0, 0.1), Timed(2, 0, 0.0), Timed(1, 5, 0.2)]),
    lambda: capacity(COSTS, [], [], 4), lambda: poisson(3, 0, (1, 1), (1, 1)), lambda: Arrival(0, 0, 1),
    lambda: simulate([], COSTS, replicas=0), lambda: simulate([], COSTS, choice="best"), lambda: Replica(COSTS, 8, 4),
    lambda: Failures(0, 1), lambda: Autoscaler(1, 1, 1, 3, 2),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(wrong):
    with pytest.raises(ValueError) as told:
        wrong()
    assert "\n" not in str(told.value) and len(str(told.value)) > 20


def test_costs_are_found_again_under_noise():
    dice, truth = random.Random(1), StepCosts(0.05, 0.002, 0.0007, 0.01)
    times = []
    for writing, reading, outside in [(1, 0, 0), (4, 0, 0), (16, 0, 0), (0, 20, 1), (0, 200, 1), (2, 50, 0)] * 20:
        seconds = truth.seconds(writing, reading) + outside * truth.beside
        times.append(Timed(writing, reading, seconds * dice.gauss(1, 0.02), bool(outside)))
    found = fit(times)
    for name in ("fixed", "per_sequence", "per_prompt_token", "beside"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.15), name


def test_no_cost_is_below_zero():
    """Noise that would make one negative gives 0, and the others as they are without it."""
    assert fit([Timed(1, 0, 0.1), Timed(4, 0, 0.09), Timed(1, 10, 0.2), Timed(1, 20, 0.3)]).per_sequence == 0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         max_position_embeddings=128))  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_a_simulated_replica_makes_the_engines_steps(model, seed):
    """The same sequences that write and the same tokens of prompts, step by step, to the last."""
    dice = random.Random(seed)
    lengths = [(dice.randint(1, 60), dice.randint(1, 12)) for _ in range(12)]
    engine = Engine(model, None, EngineConfig(max_num_seqs=3, max_num_batched_tokens=16, num_blocks=200))
    requests = [
        Request(tuple(dice.randrange(61) for _ in range(prompt)), Sampling(max_new_tokens=new, temperature=0))
        for prompt, new in lengths
    ]  # fmt: skip
    for request in requests:
        engine.submit(request)
    prompts, real = {number: prompt for number, (prompt, _) in enumerate(lengths)}, []
    while engine.unfinished:
        engine.step()
        read = {number: min(new, prompts[number]) for number, _, new, _ in engine.log[-1].tokens}
        for number, tokens in read.items():
            prompts[number] -= tokens
        writers = sum(new == 1 and not read[number] for number, _, new, _ in engine.log[-1].tokens)
        real.append((writers, sum(read.values())))

    replica, made = Replica(StepCosts(1.0, 0.0, 0.0), 3, 16), []
    for number, (prompt, new) in enumerate(lengths):
        replica.waiting.append(Live(Arrival(0, prompt, new), number, prompt, new))
    replica._begin(0.0)
    while replica.inside:
        made += [(len(replica._writers), sum(replica._reads.values()))] * replica._steps
        replica.advance()
    assert made == real


def test_many_steps_in_one_go_are_the_steps_one_by_one():
    """A replica that is looked at after every step gives the same times: arrivals that change nothing do not."""
    arrivals = poisson(60, 3.0, (5, 40), (1, 30), seed=4)
    run = simulate(arrivals, COSTS, 1, 4, 32)
    now, waiting, running, ended = 0.0, list(arrivals), [], {}
    while len(ended) < len(arrivals):
        come = [each for each in waiting if each.at <= now + 1e-12]
        if not running and not come:
            now = waiting[0].at
            continue
        while come and len(running) < 4:
            running.append([come[0], come[0].prompt, come[0].new])
            waiting.remove(come.pop(0))
        writers, budget, reads = [each for each in running if not each[1]], 32, []
        budget -= len(writers)
        for each in running:
            if each[1] and budget:
                reads.append((each, min(each[1], budget)))
                budget -= reads[-1][1]
        now += COSTS.seconds(len(writers), sum(tokens for _, tokens in reads))
        for each, tokens in reads:
            each[1] -= tokens
            each[2] -= not each[1]
        for each in writers:
            each[2] -= 1
        for each in [each for each in running if not each[1] and not each[2]]:
            ended[each[0]] = now
            running.remove(each)
    assert [each.ended for each in run.served] == pytest.approx([ended[each] for each in arrivals])


@given(st.integers(0, 10_000), st.sampled_from(CHOICES), st.booleans(), st.booleans())
def test_nothing_is_lost_or_answered_twice(seed, choice, fails, scales):
    arrivals = poisson(80, 20.0, (1, 40), (1, 10), seed)
    failures = Failures(3.0, 1.0, tries=2) if fails else None
    scaler = Autoscaler(3, 0.5, 1.0, 1, 6, patience=1.0) if scales else None
    run = simulate(arrivals, COSTS, 2, 4, 32, 5, choice, failures, scaler, seed)
    assert len(run.served) == 80
    for served, arrival in zip(run.served, arrivals, strict=True):
        assert served.sent == arrival.at
        if not served.error:
            shortest = COSTS.seconds(0, 0) * arrival.new
            assert arrival.at < served.first <= served.ended and served.ended - served.sent >= shortest - 1e-9
    for edge in run.replicas:
        assert 0 <= edge[1] <= (6 if scales else 2)
    assert run.failures == 0 or fails


def test_littles_law_holds_of_a_simulation():
    run = simulate(poisson(3000, 4.0, (20, 60), (5, 15)), COSTS, 1, 8)
    found = figures(run.served)
    stay = statistics.fmean(each.ended - each.sent for each in run.served)
    events = sorted([(each.sent, 1) for each in run.served] + [(each.ended, -1) for each in run.served])
    inside = list(accumulate(change for _, change in events))
    area = sum(count * (b - a) for count, (a, _), (b, _) in zip(inside, events, events[1:], strict=False))
    assert (
        area / (events[-1][0] - events[0][0]) == pytest.approx(little(found.rate, stay)) == pytest.approx(found.inside)
    )


def test_capacity_is_what_leaves_when_some_always_wait():
    work = poisson(4000, 1000.0, (20, 60), (5, 15))  # all at once, nearly
    found = figures(simulate(work, COSTS, 1, 4, max_waiting=10_000).served)
    predicted = capacity(COSTS, [each.prompt for each in work], [each.new for each in work], 4)
    assert found.rate == pytest.approx(predicted, rel=0.02)


def test_two_at_random_nearly_do_what_the_least_does():
    """Mitzenmacher 2001: a choice of two is most of the way from none to all."""
    work = poisson(4000, 40.0, (20, 60), (5, 15), seed=1)
    p99 = {choice: figures(simulate(work, COSTS, 8, 4, choice=choice).served).first_p99 for choice in CHOICES}
    assert p99["least"] <= p99["two"] < (p99["least"] + p99["random"]) / 2


def test_failures_cost_time_but_no_answer():
    work = poisson(2000, 8.0, (20, 60), (5, 15))
    calm, rough = (simulate(work, COSTS, 4, 4, failures=each) for each in (None, Failures(20, 5, tries=9)))
    assert rough.failures > 10 and all(not each.error for each in rough.served)
    assert any(each.tries > 1 for each in rough.served)
    assert figures(rough.served).whole_p99 > figures(calm.served).whole_p99


def test_an_autoscaler_follows_the_load_and_pays_less_than_the_most():
    work = poisson(600, 4.0, (20, 60), (5, 15)) + [
        Arrival(200 + each.at, each.prompt, each.new) for each in poisson(3000, 30.0, (20, 60), (5, 15))
    ]  # fmt: skip
    run = simulate(work, COSTS, 1, 4, max_waiting=10_000, autoscaler=Autoscaler(3, 1, 5, 1, 16, patience=20))
    most = max(count for _, count in run.replicas)
    last = max(each.ended for each in run.served)
    assert 5 <= most <= 16 and run.replicas[-1][1] < most and run.paid < most * last
    assert all(not each.error for each in run.served)


def test_figures_of_a_few_by_hand():
    served = [Served(0, 1, 3, 3), Served(1, 2, 6, 3), Served(2, math.nan, math.nan, 0, error="refused")]
    found = figures(served, first=1.0, between=1.0)
    assert (found.answered, found.failed, found.first_p50, found.whole_p99) == (2, 1, 1, 5)
    assert found.rate == pytest.approx(2 / 6) and found.goodput == pytest.approx(1 / 6)
    assert found.inside == pytest.approx(8 / 6)


def test_costs_of_a_server_are_measured_from_outside(monkeypatch):
    """A simulated server is asked; its costs come out, although callers' prompts share steps with others' words."""
    import asyncio

    from llm_ops.load import measure as measuring
    from llm_serve.bench import Sample

    truth = StepCosts(0.05, 0.003, 0.0008, 0.012)

    async def asked(url, model, work, callers, api_key=""):
        replica, rest, found = Replica(truth, 8), list(enumerate(work))[::-1], {}

        def send(now):
            if rest:
                number, job = rest.pop()
                arrival = Arrival(now, 2 * len(job.prompt.split()), job.max_tokens)
                replica.take(Live(arrival, number, arrival.prompt, arrival.new), now)

        for _ in range(callers):
            send(0.0)
        while replica.inside:
            now = replica.until
            for live in replica.advance():
                first, new = live.first + truth.beside, live.arrival.new
                pace = (now - live.first) / max(1, new - 1)
                tokens = [first + place * pace for place in range(new)]
                found[live.number] = Sample(live.arrival.at, tokens, tokens[-1], new, live.arrival.prompt)
                send(now)
        return [found[number] for number in range(len(work))]

    monkeypatch.setattr(measuring, "closed_loop", asked)
    found = asyncio.run(measuring.measure("", "", (1, 2, 4, 8), (10, 40, 80), rounds=4))
    assert found.tokens_per_word == 2
    for name in ("fixed", "per_sequence", "per_prompt_token", "beside"):
        assert getattr(found.costs, name) == pytest.approx(getattr(truth, name), rel=0.1), name
    samples = asyncio.run(asked("", "", measuring.prompts(20, 30, 12, 0), 5))
    assert measuring.slower(samples, truth) == pytest.approx(1.0, rel=0.05)
    assert measuring.slower(samples, truth.times(0.5)) == pytest.approx(2.0, rel=0.05)
    with pytest.raises(ValueError, match="two tokens"):
        measuring.slower([], truth)
    with pytest.raises(ValueError, match="two numbers of callers"):
        asyncio.run(measuring.measure("", "", (1,), (10, 40)))


def test_a_stand_in_writes_what_is_asked_for(tmp_path):
    """An answer that ends by itself would make a load lighter than it was planned."""
    from llm_core.store.registry import load_model
    from llm_ops.load.stand_in import stand_in

    engine = Engine(*load_model(str(stand_in(tmp_path / "m", 64, 1))))
    asked = [Request((number % 50 + 1,) * 4, Sampling(max_new_tokens=60, temperature=0)) for number in range(30)]
    assert engine.stop_ids == () and {len(each[0].tokens) for each in engine.run(asked)} == {60}


def test_thousands_of_replicas_with_failures() -> None:
    """The same code as for one: everything is answered, also what was inside of a replica that died."""
    costs = StepCosts(0.01, 0.001, 0.0001)
    rate = 2000 * 0.75 * capacity(costs, [40] * 2, [20] * 2, 4)
    work = poisson(40_000, rate, (20, 60), (10, 30))
    run = simulate(work, costs, replicas=2000, max_num_seqs=4, choice="two", failures=Failures(60, 20))
    found = figures(run.served)
    assert found.answered == 40_000 and not found.failed
    assert run.failures > 50 and any(each.tries > 1 for each in run.served)
    small = simulate(work[:2000], costs, replicas=2000, max_num_seqs=4, choice="two", failures=None)
    assert small.failures == 0 and all(each.tries == 1 for each in small.served)
