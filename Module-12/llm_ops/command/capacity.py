"""`llm-ops measure`, `llm-ops capacity` and `llm-ops cost`."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from course.files import write_text
from course.terminal import options_of, parse
from llm_ops.capacity.cluster import simulate
from llm_ops.capacity.costs import StepCosts
from llm_ops.capacity.costs import capacity as most
from llm_ops.capacity.requests import figures, poisson
from llm_ops.cost import dollars_per_million


def measured(arguments: Sequence[str]) -> int:
    """`llm-ops measure`: times of a running server, written into a file."""
    from llm_serve.bench import first_model

    from llm_ops.load.measure import measure

    parser = options_of("llm-ops measure")
    parser.add_argument("url", help="of a server with OpenAI's interface that nobody else asks")
    parser.add_argument("--costs", required=True, help="the file that is written (JSON)")
    parser.add_argument("--model", help="what requests name; the server's first by default")
    parser.add_argument("--api_key", default="")
    parser.add_argument("--batches", default="1,2,4", help="callers at once (1,2,4)")
    parser.add_argument("--words", default="10,40,80", help="of prompts, shorter than a step's tokens (10,40,80)")
    parser.add_argument("--new", type=int, default=16, help="tokens of an answer (16)")
    parser.add_argument("--rounds", type=int, default=5, help="requests of each kind (5)")
    options = parse(parser, arguments)
    batches, words = _numbers("--batches", options.batches), _numbers("--words", options.words)
    url = options.url.rstrip("/")
    model = options.model or first_model(url, options.api_key)
    found = asyncio.run(measure(url, model, batches, words, options.new, options.rounds, options.api_key))
    write_text(Path(options.costs).expanduser(), json.dumps(asdict(found.costs), indent=2) + "\n")
    for name, seconds in asdict(found.costs).items():
        print(f"{name:<18}{1e3 * seconds:10.3f} ms")
    return 0


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r} must be whole numbers with commas between them") from None


def read_costs(path: str) -> StepCosts:
    """Costs from a file of `llm-ops measure`.

    Raises:
        ValueError: for a file that is none.
    """
    try:
        return StepCosts(**json.loads(Path(path).expanduser().read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); `llm-ops measure` writes it") from None
    except (TypeError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is no file of `llm-ops measure`") from None


def capacity(arguments: Sequence[str]) -> int:
    """`llm-ops capacity`: waits at several rates, simulated."""
    parser = options_of("llm-ops capacity")
    parser.add_argument("--costs", required=True, help="a file that `llm-ops measure` wrote")
    parser.add_argument("--replicas", type=int, default=1, help="(1)")
    parser.add_argument("--max_num_seqs", type=int, default=32, help="answers that a replica writes at once (32)")
    parser.add_argument("--max_num_batched_tokens", type=int, default=256, help="tokens of a step (256)")
    parser.add_argument(
        "--prompt", type=int, default=200, help="tokens of a prompt, half to one and a half times (200)"
    )
    parser.add_argument("--new", type=int, default=100, help="tokens of an answer, likewise (100)")
    parser.add_argument("--requests", type=int, default=2000, help="to simulate (2000)")
    parser.add_argument("--first", type=float, default=2.0, help="seconds to a first token that callers bear (2)")
    parser.add_argument("--between", type=float, default=0.2, help="seconds between tokens that they bear (0.2)")
    options = parse(parser, arguments)
    if min(options.prompt, options.new, options.requests) < 1:
        raise ValueError("--prompt, --new and --requests must be at least 1")
    costs = read_costs(options.costs)
    prompt, new = ((max(1, size // 2), size + size // 2) for size in (options.prompt, options.new))
    work = poisson(options.requests, 1.0, prompt, new)
    full = options.replicas * most(
        costs, [each.prompt for each in work], [each.new for each in work], options.max_num_seqs
    )
    print(f"{options.replicas} replicas serve at most {full:.2f} requests/s of such lengths")
    print(f"{'rate':>8}{'of it':>7}{'first p50':>11}{'first p99':>11}{'whole p99':>11}{'goodput':>9}")
    for share in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2):
        arrivals = poisson(options.requests, share * full, prompt, new)
        run = simulate(arrivals, costs, options.replicas, options.max_num_seqs, options.max_num_batched_tokens)
        one = figures(run.served, options.first, options.between)
        print(
            f"{share * full:8.2f}{share:7.0%}{one.first_p50:9.2f} s{one.first_p99:9.2f} s{one.whole_p99:9.2f} s"
            f"{one.goodput:9.2f}" + (f"  {one.failed} refused" if one.failed else "")
        )
    return 0


def cost(arguments: Sequence[str]) -> int:
    """`llm-ops cost`: dollars of a million tokens."""
    parser = options_of("llm-ops cost")
    parser.add_argument("--tokens_per_second", type=float, required=True, help="written, when some always wait")
    parser.add_argument("--dollars", type=float, required=True, help="of the machine, an hour")
    parser.add_argument("--used", type=float, default=1.0, help="share of that rate at which it is used (1)")
    options = parse(parser, arguments)
    found = dollars_per_million(options.tokens_per_second, options.dollars, options.used)
    print(f"{found:.{max(2, 1 - math.floor(math.log10(found))) if found else 2}f} dollars a million tokens")
    return 0
