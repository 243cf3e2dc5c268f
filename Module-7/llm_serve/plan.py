"""What can these GPUs serve? Weights, cache of a request, the largest batch, tokens a second and their price.

Writing a token reads all weights and the cache of every request once: a step takes at least those bytes over the
bandwidth, and at least the batch's FLOPs over the rate of products. Pope et al. 2022, section 2 (arXiv:2211.05102).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llm_core.config import GPTConfig
from llm_core.costs.counts import parameter_parts
from llm_core.costs.speed import PEAK_FLOPS

from course.terminal import options_of, parse
from llm_serve.cache.sizes import kv_bytes_per_token


class GPU(NamedTuple):
    """Bytes, bytes/s of the memory, and FLOP/s of dense 16-bit products."""

    memory: float
    bandwidth: float
    rate: float


# Memory and its bandwidth by NVIDIA's data sheets; H100 is the SXM form, A100 that of 80 GB.
GPUS: dict[str, GPU] = {
    "H100": GPU(80e9, 3.35e12, PEAK_FLOPS["NVIDIA H100 80GB HBM3"]),
    "H100-PCIe": GPU(80e9, 2.0e12, PEAK_FLOPS["NVIDIA H100 PCIe"]),
    "H200": GPU(141e9, 4.8e12, PEAK_FLOPS["NVIDIA H200"]),
    "A100": GPU(80e9, 2.039e12, PEAK_FLOPS["NVIDIA A100-SXM4-80GB"]),
    "A100-40GB": GPU(40e9, 1.555e12, PEAK_FLOPS["NVIDIA A100-SXM4-40GB"]),
}
# Bytes of a weight in a block's matrices; embedding, head and norms keep 16 bits. int4: a 16-bit scale for each 128.
WEIGHT_BYTES: dict[str, float] = {"bfloat16": 2.0, "fp8": 1.0, "int4": 0.5 + 2 / 128}
CACHE_BYTES: dict[str, float] = {"bfloat16": 2.0, "fp8": 1.0}


@dataclass(frozen=True)
class Machine:
    """GPUs that serve together.

    Args:
        gpus: how many.
        memory: bytes of each.
        bandwidth: bytes/s of each one's memory.
        rate: FLOP/s of each one's 16-bit products.
        dollars: an hour of one GPU; 0 where nobody asks.
        usable: share of the memory that weights and cache may fill; the rest is for activations and the library.
    """

    gpus: int
    memory: float
    bandwidth: float
    rate: float
    dollars: float = 0.0
    usable: float = 0.9

    def __post_init__(self) -> None:
        if self.gpus < 1 or not min(self.memory, self.bandwidth, self.rate) > 0 or not 0 < self.usable <= 1:
            raise ValueError(
                "gpus must be at least 1, memory, bandwidth and rate above 0, usable above 0 and at most 1"
            )
        if not 0 <= self.dollars < math.inf or self.memory == math.inf:
            raise ValueError(f"dollars={self.dollars} must be 0 or more, and it and memory={self.memory} finite")


@dataclass(frozen=True)
class Serving:
    """A way to serve a model, and what bounds it.

    Attributes:
        weights: dtype of the matrices.
        tensor_parallel: GPUs that share one copy of the model; gpus / tensor_parallel copies serve beside each other.
        weight_bytes: of one copy.
        request_bytes: of the cache of one request at its longest.
        batch: requests at once, all copies together: what fits, and at most `most` a copy; 0 where not one does.
        step_seconds: the least seconds of a step at that batch; what the GPUs of a copy send each other comes on top.
        tokens_per_second: the most, all copies together.
        alone: the most tokens a second of a single request.
        dollars_per_million: tokens that are written; None without a price or where nothing fits.
    """

    weights: str
    tensor_parallel: int
    weight_bytes: float
    request_bytes: float
    batch: int
    step_seconds: float
    tokens_per_second: float
    alone: float
    dollars_per_million: float | None


def weight_bytes(config: GPTConfig, weights: str) -> float:
    """Bytes of a model whose blocks' matrices are of a dtype of `WEIGHT_BYTES`."""
    parts = parameter_parts(config)
    blocks = parts["attention"] + parts["mlp"]
    return blocks * WEIGHT_BYTES[weights] + (sum(parts.values()) - blocks) * WEIGHT_BYTES["bfloat16"]


def step_seconds(
    config: GPTConfig, machine: Machine, weights: str, cache: str, parallel: int, batch: int, held: float
) -> float:
    """The least seconds in which a copy writes a token for each of `batch` requests with `held` tokens in the cache.

    Products are counted at the rate of 16 bits, also for weights of fewer: where products and not bytes decide, a GPU
    that multiplies eight bits twice as fast has a lower bound.
    """
    parts = parameter_parts(config)
    looked_up = 0 if config.tie_word_embeddings else parts["embedding"]  # rows of it are read, not all
    read = weight_bytes(config, weights) - WEIGHT_BYTES["bfloat16"] * looked_up
    read += batch * held * kv_bytes_per_token(config, CACHE_BYTES[cache])
    attended = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * held
    products = 2 * (sum(parts.values()) - looked_up)
    return max(read / machine.bandwidth, batch * (products + attended) / machine.rate) / parallel


def serving(
    config: GPTConfig, machine: Machine, prompt: int, new: int, weights: Sequence[str] = tuple(WEIGHT_BYTES),
    cache: str = "bfloat16", most: int = 1024,
) -> list[Serving]:  # fmt: skip
    """Every way in which the GPUs can share a model, for each dtype of the weights.

    Args:
        config: of the model.
        machine: the GPUs.
        prompt: tokens of a request's prompt.
        new: tokens of its answer. The cache holds prompt + new at its end and prompt + new / 2 on average.
        weights: dtypes to ask for.
        cache: dtype of keys and values.
        most: requests of a copy at once, whatever fits.

    Raises:
        ValueError: for a request longer than the model's positions, and names that are not in the tables.
    """
    if prompt < 1 or new < 1 or prompt + new > config.max_position_embeddings:
        there = config.max_position_embeddings
        raise ValueError(f"prompt={prompt} and new={new} must be at least 1, and together at most {there} positions")
    for name, table in ((cache, CACHE_BYTES), *((each, WEIGHT_BYTES) for each in weights)):
        if name not in table:
            raise ValueError(f"{name!r} is none of {', '.join(table)}")
    found = []
    for dtype in weights:
        for parallel in range(1, machine.gpus + 1):
            if machine.gpus % parallel or config.num_key_value_heads % parallel or config.vocab_size % parallel:
                continue
            copies, size = machine.gpus // parallel, weight_bytes(config, dtype)
            request = (prompt + new) * kv_bytes_per_token(config, CACHE_BYTES[cache])
            room = parallel * machine.memory * machine.usable - size
            batch = min(most, int(room // request)) if room > 0 else 0
            held = prompt + new / 2
            seconds = step_seconds(config, machine, dtype, cache, parallel, batch, held) if batch else 0.0
            speed = copies * batch / seconds if batch else 0.0
            alone = 1 / step_seconds(config, machine, dtype, cache, parallel, 1, held) if batch else 0.0
            price = machine.gpus * machine.dollars / 3600 / speed * 1e6 if speed and machine.dollars else None
            found.append(Serving(dtype, parallel, size, request, copies * batch, seconds, speed, alone, price))
    return found


def table(found: Sequence[Serving]) -> str:
    """The ways as text."""
    heads = (
        "weights",
        "GPUs a copy",
        "weights GB",
        "cache MB a request",
        "batch",
        "ms a step",
        "tokens/s",
        "alone",
        "$/M",
    )
    lines: list[tuple[str, ...]] = [heads]
    for each in found:
        price = "" if each.dollars_per_million is None else f"{each.dollars_per_million:.2f}"
        head = (each.weights, str(each.tensor_parallel), f"{each.weight_bytes / 1e9:.1f}")
        if not each.batch:
            lines.append((*head, f"{each.request_bytes / 1e6:.0f}", "0", "", "", "", ""))
            continue
        lines.append((*head, f"{each.request_bytes / 1e6:.0f}", str(each.batch), f"{each.step_seconds * 1e3:.1f}",
                      f"{each.tokens_per_second:,.0f}", f"{each.alone:,.0f}", price))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def main(arguments: Sequence[str]) -> int:
    """`llm-serve plan`."""
    from llm_scale.planner import MODELS

    parser = options_of("llm-serve plan")
    parser.add_argument("model", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--gpu", default="H100", help=f"one of {', '.join(GPUS)} (H100)")
    parser.add_argument("--gpus", type=int, default=2, help="how many (2)")
    parser.add_argument("--memory", type=float, help="GB of each; the GPU's by default")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of a prompt (1024)")
    parser.add_argument("--new", type=int, default=256, help="tokens of an answer (256)")
    parser.add_argument("--cache", default="bfloat16", help="bfloat16 or fp8 (bfloat16)")
    parser.add_argument("--dollars", type=float, default=0.0, help="an hour of one GPU")

    options = parse(parser, arguments)
    for name, there in ((options.model, MODELS), (options.gpu, GPUS)):
        if name not in there:
            raise ValueError(f"{name!r} is none of {', '.join(there)}")
    gpu = GPUS[options.gpu]
    memory = gpu.memory if options.memory is None else options.memory * 1e9
    machine = Machine(options.gpus, memory, gpu.bandwidth, gpu.rate, options.dollars)
    found = serving(MODELS[options.model], machine, options.prompt, options.new, cache=options.cache)
    print(table(found))
    print(
        f"{options.model} on {options.gpus} x {options.gpu} of {memory / 1e9:g} GB; prompts of {options.prompt} "
        f"tokens, answers of {options.new}. Bounds by bandwidth and products: a server stays below them."
    )
    return 0
