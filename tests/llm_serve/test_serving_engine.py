"""The engine under traffic: each request gets what transformers' `generate` gives it alone, and nothing is lost."""

from __future__ import annotations

import copy
import random
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_core.generate import Sampling, adjust
from llm_core.model import KeyValueCache
from llm_peft.lora.bank import AdapterBank
from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.files import adapter_state
from llm_peft.lora.inject import inject
from llm_serve import Engine, EngineConfig, PreallocatedCache, Request
from llm_serve.cache.paged import PagedCache
from llm_serve.cache.sizes import kv_bytes_per_token, mla_bytes_per_token, paged_waste, reserved_waste
from llm_serve.engine.engine import answer
from llm_serve.engine.forward import Piece, forward
from llm_serve.engine.request import Finish
from llm_serve.errors import QueueFull, RequestError
from llm_serve.quantization.kv_cache import FORMATS, bytes_a_vector, dequantize_vectors, quantize_vectors
from tiny_models import VOCAB, alone, pair


@cache
def pool() -> list[tuple[Request, list[int]]]:
    """Requests of all kinds with what transformers writes for each; many begin alike, so that blocks are found."""
    dice, found = random.Random(7), []
    for number in range(36):
        begin = [(5, 6, 7, 8, 9, 10, 11, 12, 13), (5, 6, 7, 8), ()][number % 3]
        prompt = (*begin, *(dice.randrange(VOCAB) for _ in range(dice.randint(1, 14))))
        asked = Sampling(
            max_new_tokens=dice.randint(1, 14), temperature=dice.choice([0, 0, 0.7, 1.3]), seed=number,
            top_k=dice.choice([0, 4]), top_p=dice.choice([1, 0.8]), repetition_penalty=dice.choice([1, 1.3]),
            stop_ids=dice.choice([(), (3, 4, 17)]), suppress_tokens=dice.choice([(), (1, 2)]),
        )  # fmt: skip
        found.append((Request(prompt, asked, priority=dice.randint(0, 2)), alone(pair()[0], prompt, asked)))
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 35), st.integers(0, 4)), min_size=1, max_size=14),
    st.integers(1, 6), st.integers(0, 12), st.integers(1, 5), st.integers(0, 12), st.booleans(), st.integers(1, 40),
)  # fmt: skip
def test_each_request_gets_what_it_gets_alone(arrivals, size, more_blocks, seqs, more_tokens, prefixes, patience):
    needed = max(len(pool()[each][0].prompt) + pool()[each][0].sampling.max_new_tokens for each, _ in arrivals)
    config = EngineConfig(
        block_size=size, num_blocks=-(-needed // size) + more_blocks, max_num_seqs=seqs,
        max_num_batched_tokens=seqs + more_tokens, enable_prefix_caching=prefixes, patience=patience,
    )  # fmt: skip
    engine = Engine(pair()[1], None, config)
    wanted, deltas = {}, {}
    for place, pause in arrivals:
        wanted[engine.submit(pool()[place][0])] = pool()[place][1]
        for _ in range(pause):
            for delta in engine.step():
                deltas.setdefault(delta.number, []).append(delta)
    for _ in range(2000):
        if not engine.unfinished:
            break
        for delta in engine.step():
            deltas.setdefault(delta.number, []).append(delta)
    assert {number: list(answer(parts).tokens) for number, parts in deltas.items()} == wanted
    assert engine.scheduler.pool.used == 0 and not any(engine.scheduler.pool.holders)
    assert all(sum(count for _, _, count, _ in step.tokens) <= config.max_num_batched_tokens for step in engine.log)
    assert all(len(step.tokens) <= seqs for step in engine.log)


def test_the_traffic_meets_what_it_is_to_meet():
    """In the pool's own traffic there are preemptions, prefix hits, evictions, and prompts cut into chunks."""
    config = EngineConfig(block_size=3, num_blocks=14, max_num_seqs=5, max_num_batched_tokens=7)
    engine = Engine(pair()[1], None, config)
    answers = engine.run([request for request, _ in pool()])
    assert [list(each[0].tokens) for each in answers] == [expected for _, expected in pool()]
    assert sum(len(step.preempted) for step in engine.log) > 0
    assert engine.scheduler.pool.evicted > 0
    read = sum(count for step in engine.log for _, _, count, _ in step.tokens)
    written = sum(len(expected) for _, expected in pool())
    without = Engine(pair()[1], None, EngineConfig(**{**vars(config), "enable_prefix_caching": False}))
    without.run([request for request, _ in pool()])
    assert read < sum(count for step in without.log for _, _, count, _ in step.tokens)
    assert written < read
    assert (
        max(count for step in engine.log for _, _, count, _ in step.tokens)
        <= 7
        < max(len(request.prompt) for request, _ in pool())
    )


def test_several_answers_to_one_prompt_share_its_blocks_and_part():
    asked = Sampling(max_new_tokens=9, temperature=1.1, seed=40)
    prompt = (5, 6, 7, 8, 9, 10, 11)
    engine = Engine(pair()[1], None, EngineConfig(block_size=4, num_blocks=30, max_num_seqs=4))
    answers = engine.run([Request(prompt, asked, n=4)])[0]
    assert [list(each.tokens) for each in answers] == [alone(pair()[0], prompt, asked, 40 + i) for i in range(4)]
    assert len({each.tokens for each in answers}) == 4
    assert engine.scheduler.pool.used == 0
    # The prompt is read once, and its first block is one for all: after the first step there are 2 and not 8.
    assert [count for _, _, count, _ in engine.log[0].tokens] == [7]
    assert engine.log[0].blocks == 2
    assert engine.log[1].blocks == 5  # the half-full second block was copied for three of the four


def test_several_answers_where_blocks_are_short():
    asked = Sampling(max_new_tokens=12, temperature=1.1, seed=3)
    requests = [Request((5, 6, 7, 8, 9, place), asked, n=3) for place in range(4)]
    engine = Engine(pair()[1], None, EngineConfig(block_size=4, num_blocks=9, max_num_seqs=6, max_num_batched_tokens=8))
    for request, answers in zip(requests, engine.run(requests), strict=True):
        expected = [alone(pair()[0], request.prompt, asked, 3 + i) for i in range(3)]
        assert [list(each.tokens) for each in answers] == expected
    assert sum(len(step.preempted) for step in engine.log) > 0


def test_adapters_of_one_batch():
    theirs, ours = pair()
    banks, alone_with = {}, {}
    prompt, asked = (5, 6, 7, 8), Sampling(max_new_tokens=8, temperature=0)
    for name, r in (("german", 4), ("code", 2)):
        base = type(ours)(ours.config)
        base.load_state_dict(ours.state_dict())
        config = LoRAConfig(r=r, lora_alpha=8, target_modules="all-linear")
        inject(base, config)
        torch.manual_seed(r)
        with torch.no_grad():
            for key, weight in base.named_parameters():
                if "lora_B" in key:
                    weight.normal_(std=0.3)
        base.eval()
        banks[name] = (config, adapter_state(base))
        alone_with[name] = list(Engine(base).run([Request(prompt, asked)])[0][0].tokens)
    alone_with[None] = alone(theirs, prompt, asked)
    copy = type(ours)(ours.config)
    copy.load_state_dict(ours.state_dict())
    bank = AdapterBank(copy, banks)
    engine = Engine(copy, None, EngineConfig(block_size=2, num_blocks=64, max_num_batched_tokens=32), bank)
    names = ["german", None, "code", "german", None, "code"]
    # Twice, so that the second time blocks are found: those of the same adapter only.
    for _ in range(2):
        answers = engine.run([Request(prompt, asked, adapter=name) for name in names])
        assert [list(each[0].tokens) for each in answers] == [alone_with[name] for name in names]
    assert len({tuple(each) for each in alone_with.values()}) == 3
    with pytest.raises(RequestError, match=r"no adapter is called 'french'; there are german, code"):
        engine.submit(Request(prompt, asked, adapter="french"))


def test_log_probabilities_are_those_of_the_model():
    theirs, ours = pair()
    answers = Engine(ours).run([Request((5, 6, 7), Sampling(max_new_tokens=4, temperature=0.5, top_k=3), logprobs=2)])
    told = answers[0][0]
    ids = torch.tensor([[5, 6, 7, *told.tokens]])
    with torch.no_grad():
        expected = theirs(ids).logits[0, 2:-1].log_softmax(-1)
    assert len(told.logprobs) == 4
    for row, each in zip(expected, told.logprobs, strict=True):
        assert each.logprob == pytest.approx(float(row[each.token]), abs=1e-5)
        assert [token for token, _ in each.top] == row.topk(2).indices.tolist()
        assert [value for _, value in each.top] == pytest.approx(row.topk(2).values.tolist(), abs=1e-5)


def test_log_probabilities_of_what_was_drawn_from():
    """After temperature and cuts, and with each token judged by what stood before it, as a penalty does."""
    theirs, ours = pair()
    engine = Engine(ours, None, EngineConfig(logprobs_mode="processed_logprobs"))
    asked = Sampling(max_new_tokens=6, temperature=0.5, top_k=3, repetition_penalty=1.5, suppress_tokens=(9,), seed=3)
    told = engine.run([Request((5, 6, 7), asked, logprobs=0)])[0][0]
    ids = [5, 6, 7, *told.tokens]
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0, 2:-1].clone()
    logits[:, 9] = -torch.inf
    for place, (row, each) in enumerate(zip(logits, told.logprobs, strict=True)):
        adjusted = adjust(row[None], torch.tensor([ids[: 3 + place]]), asked)[0].log_softmax(-1)
        assert each.logprob == pytest.approx(float(adjusted[each.token]), abs=1e-5)
    greedy = engine.run([Request((5, 6, 7), Sampling(max_new_tokens=3, temperature=0), logprobs=0)])[0][0]
    assert [each.logprob for each in greedy.logprobs] == [0.0] * 3  # nothing else could be taken
    with pytest.raises(ValueError, match="logprobs_mode='raw' is none of raw_logprobs"):
        EngineConfig(logprobs_mode="raw")


def test_new_weights_find_nothing_of_the_old_ones():
    model = copy.deepcopy(pair()[1])
    engine, prompt = Engine(model, None, EngineConfig(block_size=4)), tuple(range(3, 30))
    asked = Sampling(max_new_tokens=4, temperature=0)
    engine.run([Request(prompt, asked)])
    engine.submit(Request(prompt, asked))
    with pytest.raises(RuntimeError, match="1 requests are not whole; end them before the weights change"):
        engine.weights_changed()
    while engine.unfinished:
        engine.step()
    with torch.no_grad():
        for values in model.parameters():
            values.add_(0.3 * torch.randn_like(values, dtype=torch.float32))
    engine.weights_changed()
    fresh = Engine(copy.deepcopy(model), None, EngineConfig(block_size=4)).run([Request(prompt, asked, logprobs=0)])
    assert engine.run([Request(prompt, asked, logprobs=0)]) == fresh


def test_cancelling_frees_and_leaves_others_alone():
    engine = Engine(pair()[1], None, EngineConfig(block_size=2, num_blocks=40, max_num_seqs=2))
    (first, expected), second = pool()[0], Request((9, 9, 9), Sampling(max_new_tokens=50, temperature=0))
    kept, running, waiting = engine.submit(first), engine.submit(second), engine.submit(second)
    parts = [each for each in engine.step() if each.number == kept]
    ended = [*engine.cancel(running), *engine.cancel(waiting)]
    assert [(each.number, each.finish) for each in ended] == [(1, Finish.CANCELLED), (2, Finish.CANCELLED)]
    assert engine.cancel(running) == [] and engine.cancel(99) == []
    while engine.unfinished:
        parts += engine.step()
    assert list(answer([each for each in parts if each.number == kept]).tokens) == expected
    assert engine.scheduler.pool.used == 0


def test_a_low_priority_is_served_while_higher_ones_keep_coming():
    engine = Engine(pair()[1], None, EngineConfig(block_size=4, num_blocks=12, max_num_seqs=1, patience=10))
    low = engine.submit(Request((1, 2, 3), Sampling(max_new_tokens=4, temperature=0), priority=2))
    ended = []
    for _ in range(200):
        if len(engine.scheduler.waiting) < 2:
            engine.submit(Request((4, 5), Sampling(max_new_tokens=4, temperature=0), priority=0))
        ended += [each.number for each in engine.step() if each.finish]
        if low in ended:
            break
    assert low in ended and len(ended) > 2  # later ones went first, and it had its turn


def test_a_higher_priority_goes_first_and_takes_the_place():
    engine = Engine(pair()[1], None, EngineConfig(block_size=4, num_blocks=12, max_num_seqs=1))
    low = engine.submit(Request((1, 2, 3), Sampling(max_new_tokens=20, temperature=0), priority=1))
    engine.step()
    high = engine.submit(Request((4, 5), Sampling(max_new_tokens=3, temperature=0), priority=0))
    ended = []
    while engine.unfinished:
        ended += [each.number for each in engine.step() if each.finish]
    assert ended == [high, low]
    assert [step.preempted for step in engine.log if step.preempted] == [(low,)]


def test_requests_that_can_never_be_served():
    ours = pair()[1]
    engine = Engine(ours, None, EngineConfig(block_size=4, num_blocks=5, max_num_seqs=2))
    short = Sampling(max_new_tokens=4)
    for request, message in (
        (Request((), short), "a prompt is empty"),
        (Request((1, VOCAB), short), f"a prompt has token {VOCAB}, and the model a vocab_size of {VOCAB}"),
        (Request(tuple([1] * 96), short), "leaves no room in 96 positions"),
        (Request(tuple([1] * 18), short), "18 tokens and 4 new ones, and the cache has room for 20"),
        (Request((1,), short, n=3), "n=3 answers; from 1 to 2"),
        (Request((1,), short, n=0), "n=0 answers"),
        (Request((1,), short, logprobs=-1), "logprobs=-1 must be from 0 to 61"),
        (Request((1,), short, stop=("",)), "a stop text is empty"),
        (Request((1,), short, stop=("end",)), "stop texts need a tokenizer"),
        (Request((1,), short, adapter="german"), "no adapter is called 'german'; the engine has none"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.submit(request)
    assert engine.unfinished == 0
    full = Engine(ours, None, EngineConfig(max_waiting=2))
    for _ in range(2):
        full.submit(Request((1,), short))
    with pytest.raises(QueueFull, match="2 requests wait already"):
        full.submit(Request((1,), short))
    with pytest.raises(TypeError, match="LlamaForCausalLM is not of this course's GPT class"):
        Engine(pair()[0])
    for wrong in ({"block_size": 0}, {"num_blocks": True}, {"max_num_seqs": 10, "max_num_batched_tokens": 9}):
        with pytest.raises(ValueError, match="at least"):
            EngineConfig(**wrong)


def test_the_flat_batch_on_the_meta_device():
    """A tensor that is left on the CPU raises there, as it would on a GPU."""
    ours = type(pair()[1])(pair()[1].config).to("meta").eval()
    cache = PagedCache(ours.config, 8, 4, device="meta")
    logits = forward(ours, cache, [Piece([1, 2, 3], 0, [0], 1), Piece([4], 6, [1, 2], 1), Piece([5], 2, [3], 1)])
    assert logits.device.type == "meta" and logits.shape == (3, VOCAB)


def test_a_preallocated_cache_is_the_growing_one():
    ours = pair()[1]
    ids = torch.randint(VOCAB, (3, 10), generator=torch.Generator().manual_seed(0))
    growing, room = KeyValueCache(), PreallocatedCache(ours.config, 3, 12)
    for part in (ids[:, :6], ids[:, 6:7], ids[:, 7:]):
        assert torch.equal(ours(part, cache=growing).logits, ours(part, cache=room).logits)
    assert len(room) == 10 and room.room.data_ptr() == room.extend(0, *[torch.zeros(3, 2, 0, 8)] * 2)[0].data_ptr()
    room.crop(6)
    again = ours(ids[:, 6:], cache=room).logits
    torch.testing.assert_close(again, ours(ids).logits[:, 6:], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="13 positions, and the cache has room for 12"):
        ours(ids[:, :3], cache=room)


@pytest.mark.parametrize("format", FORMATS)
def test_a_cache_of_fewer_bits(format):
    """The engine reads what was rounded: its tokens are those of a cache that rounds what it is given and keeps it in
    full; and its bytes are counted."""

    class Rounded(KeyValueCache):
        def extend(self, layer, keys, values):
            keys, values = (dequantize_vectors(quantize_vectors(each, format)) for each in (keys, values))
            return super().extend(layer, keys, values)

    ours, prompt = pair()[1], list(range(3, 22))
    cache, ids, expected = Rounded(), torch.tensor([prompt]), []
    with torch.no_grad():
        for _ in range(12):
            ids = ours(ids, cache=cache).logits[:, -1:].argmax(-1)
            expected.append(int(ids))
    config = EngineConfig(block_size=4, num_blocks=20, max_num_batched_tokens=32, kv_cache_dtype=format)
    engine = Engine(ours, None, config)
    assert (
        list(engine.run([Request(tuple(prompt), Sampling(max_new_tokens=12, temperature=0))])[0][0].tokens) == expected
    )
    sizes = ours.config
    vectors = 2 * sizes.num_hidden_layers * sizes.num_key_value_heads * 80
    assert engine.cache.nbytes == vectors * bytes_a_vector(sizes.head_dim, format)
    with pytest.raises(ValueError, match="kv_cache_dtype='int7' is none of auto, int8, int4, fp8"):
        EngineConfig(kv_cache_dtype="int7")


def test_bytes_and_waste_are_what_is_allocated():
    config = pair()[1].config
    assert PagedCache(config, 10, 4).nbytes == 40 * kv_bytes_per_token(config, 4)
    room = PreallocatedCache(config, 3, 12).room
    assert room.numel() * room.element_size() == 36 * kv_bytes_per_token(config, 4)
    # DeepSeek-V2's own figures: 60 layers, a latent of 512 and 64 for positions.
    assert mla_bytes_per_token(60, 512, 64) == 69_120
    assert reserved_waste([10, 30], 40) == 0.5 and paged_waste([10, 30, 16], 16) == pytest.approx(1 - 56 / 64)
    with pytest.raises(ValueError, match="max_len=5"):
        reserved_waste([6], 5)
