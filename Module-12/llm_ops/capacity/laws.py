"""Laws of queues. They hold for any service that fits their assumptions, whatever it serves.

Names: rate is lambda, requests a second; capacity is mu, requests a second that one server serves when it is never
idle; load is rate / (servers x capacity).
"""

from __future__ import annotations

import math


def little(rate: float, seconds: float) -> float:
    """Requests inside, on average: L = lambda W, for every queue that is stable. Little 1961.

    Args:
        rate: at which requests enter, a second.
        seconds: that one stays, on average.

    Raises:
        ValueError: for a number below 0.
    """
    if rate < 0 or seconds < 0:
        raise ValueError(f"a rate of {rate} and a stay of {seconds} s: neither may be below 0")
    return rate * seconds


def erlang_c(load: float, servers: int) -> float:
    """The share of requests that wait, of an M/M/c queue. Erlang 1917; Harchol-Balter 2013, chapter 14.

    Args:
        load: of each server, from 0 to below 1.
        servers: c.

    Raises:
        ValueError: for a load of 1 or more, where nearly all wait and the queue grows for ever, and for no server.
    """
    require_stable(load, servers)
    busy = load * servers
    blocked = 1.0  # Erlang's B, one server more a round: no factorial grows beyond what a float holds
    for number in range(1, servers + 1):
        blocked = busy * blocked / (number + busy * blocked)
    return blocked / (1 - load * (1 - blocked))


def waits_longer(seconds: float, rate: float, capacity: float, servers: int = 1) -> float:
    """The share of an M/M/c queue's requests that wait longer than some seconds before they are served.

    Args:
        seconds: t of P(wait > t).
        rate: requests a second.
        capacity: requests a second of one server.
        servers: c.

    Raises:
        ValueError: where the servers cannot keep up.
    """
    spare = servers * capacity - rate
    return erlang_c(rate / (servers * capacity), servers) * math.exp(-spare * max(0.0, seconds))


def wait_percentile(share: float, rate: float, capacity: float, servers: int = 1) -> float:
    """The wait, in seconds, that this share of an M/M/c queue's requests do not exceed: `waits_longer` turned round.

    Args:
        share: 0.99 for the 99th percentile.
        rate: requests a second.
        capacity: requests a second of one server.
        servers: c.

    Raises:
        ValueError: for a share outside 0 to 1, and where the servers cannot keep up.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share} must be at least 0 and below 1")
    waiting = erlang_c(rate / (servers * capacity), servers)
    return max(0.0, math.log(waiting / (1 - share)) / (servers * capacity - rate)) if waiting > 0 else 0.0


def mean_wait(rate: float, seconds: float, variation: float = 1.0) -> float:
    """The mean wait of one server's queue: load / (1 - load) x (1 + variation^2) / 2 x seconds.

    Poisson arrivals, any law of service times (M/G/1). Pollaczek 1930, Khinchine 1932; Harchol-Balter 2013, chapter 23.

    Args:
        rate: requests a second.
        seconds: that one is served, on average.
        variation: standard deviation of the service time over its mean; 1 for exponential times, 0 for equal ones.

    Raises:
        ValueError: where the server cannot keep up.
    """
    load = rate * seconds
    require_stable(load, 1)
    return load / (1 - load) * (1 + variation * variation) / 2 * seconds


def require_stable(load: float, servers: int) -> None:
    """Raise where a queue would grow for ever.

    Raises:
        ValueError: for a load of 1 or more, and for no server.
    """
    if servers < 1:
        raise ValueError(f"servers={servers} must be at least 1")
    if not 0 <= load < 1:
        raise ValueError(f"a load of {load:.3g} must be from 0 to below 1: at 1 the queue grows for ever; add servers")
