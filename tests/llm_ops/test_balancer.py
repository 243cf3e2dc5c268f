"""The balancer: a request that was taken is answered once, whole, whatever happens to a replica."""

import json
import threading
import time
from contextlib import ExitStack

import httpx
import pytest
from fake_replica import Fake, running
from llm_ops.service.balancer import Balancer, balanced


@pytest.fixture
def service():
    """Start fakes behind a balancer: (address, balancer, addresses of the fakes)."""
    with ExitStack() as stack:

        def start(*fakes, **options):
            urls = [stack.enter_context(running(each)) for each in fakes]
            balancer = Balancer(tuple(urls), every=0.05, **options)
            return stack.enter_context(balanced(balancer)), balancer, urls

        yield start


def ask(url, body=None, chat=False):
    path = "/v1/chat/completions" if chat else "/v1/completions"
    return httpx.post(url + path, json={"max_tokens": 4, "seed": 7, **(body or {})}, timeout=20)


def streamed(url, body=None, chat=False):
    """(text, whether it ended, errors) of a stream."""
    path = "/v1/chat/completions" if chat else "/v1/completions"
    text, ended, errors, roles = "", False, [], 0
    with httpx.stream("POST", url + path, json={"max_tokens": 6, "seed": 7, "stream": True, **(body or {})},
                      timeout=20) as reply:  # fmt: skip
        if reply.status_code != 200:
            return "", False, [reply.status_code]
        for line in reply.iter_lines():
            data = line.removeprefix("data: ")
            ended = ended or data == "[DONE]"
            if not line.startswith("data: ") or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                errors.append(event["error"]["code"])
                continue
            choice = event["choices"][0]
            roles += "role" in choice.get("delta", {})
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
    assert roles == chat
    return text, ended, errors


def balances(balancer):
    """Each request that was taken has ended in one way."""
    return balancer.taken == balancer.answered + balancer.refused + balancer.failed + balancer.left


WHOLE = "".join(f"w7-{n} " for n in range(6))


def test_the_fewest_get_the_next(service):
    fakes = [Fake(pause=0.05), Fake(pause=0.05)]
    url, balancer, _ = service(*fakes)
    threads = [threading.Thread(target=ask, args=(url,)) for _ in range(8)]
    for each in threads:
        each.start()
        time.sleep(0.01)
    for each in threads:
        each.join()
    assert [each.asked for each in fakes] == [4, 4] and balancer.answered == 8 and balances(balancer)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("breaks_at", [0, 1, 5])
def test_a_stream_goes_on_where_its_replica_died(service, breaks_at, chat):
    url, balancer, _ = service(Fake(breaks_at=breaks_at), Fake())
    assert streamed(url, chat=chat) == (WHOLE, True, [])
    assert balancer.again == 1 and balancer.answered == 1 and balances(balancer)


def test_an_answer_in_one_piece_is_asked_for_again(service):
    url, balancer, _ = service(Fake(breaks_at=0), Fake())
    assert ask(url).json()["choices"][0]["text"] == "w7-0 w7-1 w7-2 w7-3 "
    assert balancer.again == 1 and balances(balancer)


def test_a_request_that_draws_gets_one_seed_for_all_replicas(service):
    url, _, _ = service(Fake(breaks_at=0), Fake())
    assert ask(url, {"seed": None}).json()["seed"] is not None
    text, ended, errors = streamed(service(Fake(breaks_at=3), Fake())[0], {"seed": None})
    assert len({word.split("-")[0] for word in text.split()}) == 1 and ended and not errors
    assert ask(url, {"seed": None, "temperature": 0}).json()["seed"] is None  # nothing is drawn


def test_another_models_words_are_not_joined_on(service):
    url, balancer, _ = service(Fake(breaks_at=2), Fake(voice="other"))
    text, ended, errors = streamed(url)
    assert (text, ended, errors) == ("w7-0 w7-1 ", False, ["parted"])
    assert balancer.failed == 1 and balances(balancer)


def test_when_all_die_the_caller_is_told(service):
    url, balancer, _ = service(Fake(breaks_at=2), Fake(breaks_at=4))
    text, ended, errors = streamed(url)
    assert WHOLE.startswith(text) and not ended and errors == ["no_replica"]
    assert ask(url).status_code == 503 and balancer.failed == 2 and balances(balancer)


@pytest.mark.parametrize(("status", "others", "expected"), [(429, 200, 200), (503, 200, 200), (400, 200, 400),
                                                            (429, 429, 429)])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_replica_says(service, status, others, expected, stream):
    """A full replica is not the last word; a caller's own mistake is."""
    url, balancer, _ = service(Fake(status=status), Fake(status=others))
    reply = ask(url, {"stream": stream})
    assert reply.status_code == expected and balances(balancer)
    assert (balancer.answered, balancer.refused) == ((1, 0) if expected == 200 else (0, 1))


def test_health_takes_a_replica_out_and_back(service):
    sick, other = Fake(well=False), Fake()
    url, balancer, _ = service(sick, other)
    until = time.monotonic() + 10
    while balancer.backends[0].state != "down" and time.monotonic() < until:
        time.sleep(0.01)
    assert balancer.backends[0].state == "down"
    assert all(ask(url).status_code == 200 for _ in range(3)) and sick.asked == 0
    assert httpx.get(f"{url}/health").status_code == 200  # one is left
    other.well = False
    while balancer.backends[1].state != "down" and time.monotonic() < until:
        time.sleep(0.01)
    assert httpx.get(f"{url}/health").status_code == 503 == ask(url).status_code
    sick.well = True
    while balancer.backends[0].state != "up" and time.monotonic() < until:
        time.sleep(0.01)
    assert balancer.backends[0].state == "up"


def test_draining_ends_what_was_begun_and_takes_nothing_new(service):
    slow, other = Fake(pause=0.1), Fake()
    url, balancer, urls = service(slow, other)
    found = []
    thread = threading.Thread(target=lambda: found.append(streamed(url)))
    thread.start()
    time.sleep(0.2)
    assert balancer.drain(urls[0], 10) and slow.asked == 1
    thread.join()
    assert found == [(WHOLE, True, [])]
    assert ask(url).status_code == 200 and slow.asked == 1
    balancer.remove(urls[0])
    with pytest.raises(ValueError, match="is none of"):
        balancer.remove(urls[0])
    with pytest.raises(ValueError, match="there already"):
        balancer.add(urls[1])


def test_a_caller_who_leaves_is_counted_and_his_replica_told(service):
    slow = Fake(pause=0.05)
    url, balancer, _ = service(slow)
    with httpx.stream("POST", f"{url}/v1/completions", json={"stream": True, "max_tokens": 100, "seed": 1}) as reply:
        next(reply.iter_lines())
    until = time.monotonic() + 10
    while balancer.backends[0].inside and time.monotonic() < until:
        time.sleep(0.02)
    assert balancer.backends[0].inside == 0 and balancer.left == 1 and balances(balancer)


def test_bodies_that_are_none(service):
    url, balancer, _ = service(Fake(status=400), most=1000)
    assert httpx.post(f"{url}/v1/completions", content=b"{").status_code == 400
    assert httpx.post(f"{url}/v1/completions", content=b"[1]").status_code == 400
    assert httpx.post(f"{url}/v1/completions", content=b"x" * 1001).status_code == 413
    assert httpx.get(f"{url}/metrics").text.count("balancer_") > 8 and balances(balancer)
    with pytest.raises(ValueError, match="tries=0"):
        Balancer(tries=0)
