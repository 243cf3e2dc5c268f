"""Bytes that each rank of a training run needs: what it holds, what comes and goes, and the highest moment of a step.

What one device needs is `llm_precision.predict_peak`'s; here it is divided among ranks, and what they send each other
is added. P are the numbers of the model, N the ranks, n the tokens of a rank's micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_core.config import GPTConfig
from llm_core.costs.counts import num_parameters
from llm_precision.budget import Moments, predict_peak, saved_parts
from llm_precision.levers import Levers

STRATEGIES = ("single", "ddp", "zero1", "zero2", "fsdp", "tensor")
METHODS = ("full", "lora", "qlora")
# Bytes of a weight, of its gradient, of both moments and of a weight that computes; and the lever that saves alike.
# "bf16-master": weights and gradients of 32 bits are stepped, and copies of 16 bits compute (FSDP2's policy).
PRECISIONS = {
    "fp32": (4, 4, 8, 4, "fp32"),
    "bf16-mixed": (4, 4, 8, 4, "bf16-mixed"),
    "bf16-true": (2, 2, 4, 2, "bf16-true"),
    "bf16-master": (4, 4, 8, 2, "bf16-true"),
}
BUCKET = 25 * 2**20  # bytes of a message, of torch's `DistributedDataParallel`
NF4 = 0.5 + 4 / 64  # bytes of a number in blocks of 64 with a scale in float32


@dataclass(frozen=True)
class Setup:
    """How a model is trained.

    Attributes:
        strategy: "single"; "ddp"; "zero1", "zero2" (states, then gradients sharded); "fsdp" (weights too, block by
            block, as FSDP2 does); "tensor" (every matrix cut).
        ranks: N.
        precision: a key of `PRECISIONS`.
        method: "full"; "lora" (frozen weights in the width that computes, adapters on every matrix of the blocks);
            "qlora" (those matrices in NF4).
        adapter_rank: r of the adapters.
        checkpointing: keep each block's input only.
        loss_chunk: tokens whose logits exist at a time; 0 for all.
        offload: shares of weights, gradients and states live in the host's memory (with "fsdp").

    Raises:
        ValueError: for what does not go together.
    """

    strategy: str = "single"
    ranks: int = 1
    precision: str = "fp32"
    method: str = "full"
    adapter_rank: int = 16
    checkpointing: bool = False
    loss_chunk: int = 0
    offload: bool = False

    def __post_init__(self) -> None:
        for name, known in (("strategy", STRATEGIES), ("precision", tuple(PRECISIONS)), ("method", METHODS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        if self.ranks < 1 or (self.strategy == "single" and self.ranks > 1):
            raise ValueError(f"ranks={self.ranks} with strategy={self.strategy!r}: a single device is one rank")
        if self.offload and self.strategy != "fsdp":
            raise ValueError(f"offload with strategy={self.strategy!r}: FSDP2 offloads; take strategy='fsdp'")
        if self.precision == "bf16-master" and self.strategy != "fsdp":
            raise ValueError("precision='bf16-master' is FSDP2's policy; take strategy='fsdp', or bf16-mixed")

    @property
    def levers(self) -> Levers:
        """The same for one device."""
        lever = PRECISIONS[self.precision][4]
        return Levers(lever, optimizer="fused", checkpointing=self.checkpointing, loss_chunk=self.loss_chunk)


@dataclass(frozen=True)
class Budget(Moments):
    """Bytes of one rank.

    Attributes:
        held: by name, what stays from step to step: "weights", "states", "buckets".
        gradients: when all are there.
        moments: bytes at the moments of a step at which its memory can be highest, held bytes included.
        host: bytes in the host's memory, for this rank.
    """

    held: dict[str, int]
    gradients: int
    moments: dict[str, int]
    host: int


def adapter_parameters(config: GPTConfig, rank: int) -> int:
    """Numbers of LoRA's A and B on every matrix of the blocks: r (in + out) each."""
    C, I, keys = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim  # noqa: E741
    return config.num_hidden_layers * rank * (2 * (C + C) + 2 * (C + keys) + 3 * (C + I))


def block_parameters(config: GPTConfig) -> int:
    """Numbers of one block, its two norms included."""
    outside = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size + config.hidden_size
    return (num_parameters(config) - outside) // config.num_hidden_layers


def first_share(config: GPTConfig, ranks: int) -> int:
    """Numbers that rank 0 holds under FSDP2: of each tensor the longest part of its first dimension."""
    C, I, keys = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim  # noqa: E741
    tables = [(config.vocab_size, C)] * (1 if config.tie_word_embeddings else 2)
    block = [(C, C), (keys, C), (keys, C), (C, C), (I, C), (I, C), (C, I), (C, 1), (C, 1)]
    return sum(-(-rows // ranks) * columns for rows, columns in [*tables, *config.num_hidden_layers * block, (C, 1)])


def budget(config: GPTConfig, setup: Setup, batch: int, time: int) -> Budget:
    """What a rank needs for a step with AdamW.

    Args:
        config: sizes.
        setup: strategy, precision, method.
        batch: rows of a rank's micro-batch; under "tensor" all ranks see the same rows.
        time: positions of a row.
    """
    P, N = num_parameters(config), setup.ranks
    weight, gradient, state, compute, _ = PRECISIONS[setup.precision]
    block, layers = block_parameters(config), config.num_hidden_layers
    trained, frozen = P, 0
    if setup.method != "full":
        trained, frozen = adapter_parameters(config, setup.adapter_rank), P
    narrow = layers * (block - 2 * config.hidden_size) if setup.method == "qlora" else 0  # matrices in four bits
    base = int((frozen - narrow) * compute + narrow * NF4)
    shards = {"single": (1, 1, 1), "ddp": (1, 1, 1), "zero1": (1, 1, N), "zero2": (1, N, N)}
    of_weights, of_gradients, of_states = shards.get(setup.strategy, (N, N, N))
    held = {"weights": -(-(weight * trained + base) // of_weights), "states": -(-state * trained // of_states)}
    gradients = -(-gradient * trained // of_gradients)
    if setup.strategy == "fsdp" and setup.method == "full":
        share = first_share(config, N)
        held, gradients = {"weights": weight * share, "states": state * share}, gradient * share
    if setup.strategy == "ddp":
        held["buckets"] = gradient * trained
    one = predict_peak(config, batch, time, setup.levers)
    working = _working(config, setup, batch, time, one.moments, one.held)
    if setup.strategy == "fsdp":
        moments = _fsdp_moments(config, setup, batch, time, working, gradients)
    else:
        late = {"zero1": BUCKET, "zero2": BUCKET}.get(setup.strategy, 0)  # the message that gathers stepped weights
        moments = {
            "forward end": working["forward end"],
            "backward start": working["backward start"],
            "backward end": gradients + working["backward end"],
            "optimiser": gradients + late,
        }
        if "recomputing" in working:
            moments["recomputing"] = working["recomputing"]
    stay = sum(held.values())
    host = 0
    if setup.offload:
        host, stay = stay + gradients, 0
    return Budget(held, gradients, {name: stay + value for name, value in moments.items()}, host)


def _working(
    config: GPTConfig, setup: Setup, batch: int, time: int, moments: dict[str, int], held: int
) -> dict[str, int]:
    """What a step needs beside weights, gradients and states: activations, logits, temporary numbers, by moment."""
    _, _, _, compute, lever = PRECISIONS[setup.precision]
    gradients = num_parameters(config) * (2 if lever == "bf16-true" else 4)
    found = {
        name: value - held - gradients * (name in ("backward end", "optimiser")) for name, value in moments.items()
    }
    found.pop("optimiser")
    layers, C, n, width = config.num_hidden_layers, config.hidden_size, batch * time, 2 if lever == "bf16-true" else 4
    if "recomputing" in found and (setup.strategy in ("zero2", "fsdp") or setup.method != "full"):
        # One device has the whole gradients of the later blocks by then, where they outweigh their inputs; here no.
        found["recomputing"] -= (layers - 1) * max(0, width * block_parameters(config) - 4 * n * C)
    if setup.strategy == "tensor" and not setup.checkpointing:
        cut = layers * _inside(config, compute, n) * (setup.ranks - 1) // setup.ranks
        for name in ("forward end", "backward start"):
            found[name] -= cut
    if setup.method != "full":
        # What A gives, on every matrix of a layer, is kept for B's gradient. What a frozen norm or head read is not.
        numbers = 0 if setup.checkpointing else layers * (7 * setup.adapter_rank - 2 * C)
        for name in ("forward end", "backward start"):
            found[name] += compute * n * (numbers - 2 * C)
        head = width * config.vocab_size * C  # no gradient of it
        if setup.loss_chunk:
            found["backward start"] -= head
        if "recomputing" in found:
            found["recomputing"] -= head + width * C * config.intermediate_size
        if setup.method == "qlora":  # one matrix at a time is written out to be multiplied
            found = {name: value + compute * C * config.intermediate_size for name, value in found.items()}
    return found


def _inside(config: GPTConfig, width: int, tokens: int) -> int:
    """Bytes of a layer's saved activations that lie between a column and a row parallel matrix: those are cut."""
    keys = config.num_key_value_heads * config.head_dim
    numbers = 4 * config.hidden_size + 2 * keys + 4 * config.intermediate_size
    return tokens * (width * numbers + 4 * config.num_attention_heads)


def _fsdp_moments(
    config: GPTConfig, setup: Setup, batch: int, time: int, working: dict[str, int], gradients: int
) -> dict[str, int]:
    """FSDP2's: the root stays whole; a block computes, the next one arrives, the last one's gradients leave."""
    compute, layers = PRECISIONS[setup.precision][3], config.num_hidden_layers
    if setup.offload:
        gradients = 0  # each share goes to the host when it is there
    block = int((NF4 if setup.method == "qlora" else compute) * block_parameters(config))
    root = compute * (num_parameters(config) - layers * block_parameters(config))
    trained = setup.method == "full"
    leaving = compute * (
        block_parameters(config) if trained else adapter_parameters(config, setup.adapter_rank) // layers
    )
    layer, _ = saved_parts(config, setup.levers, batch, time)
    if setup.checkpointing:
        layer = 4 * batch * time * config.hidden_size
    whole = root + 2 * block  # one computes, one arrives
    moments = {
        "forward end": whole + working["forward end"],
        "backward start": whole + working["backward start"],
    }
    if "recomputing" in working:
        # Of the last block but one: the last one's gradients leave, and what stood behind it is gone.
        later = leaving + gradients // layers - 2 * 4 * batch * time * config.hidden_size
        moments["recomputing"] = whole + working["recomputing"] + max(later, 0)
    # Of blocks whose gradients are reduced, a share is here; of those before, the activations.
    head = root if trained else 0
    for name, left in (("first reduction", layers - 1), ("last reductions", 1)):
        shares = gradients * (layers - 1 - left) // layers
        moments[name] = whole + 2 * leaving + head + left * layer + shares
    moments["backward end"] = root + block + 2 * leaving + head + gradients * (layers - 1) // layers
    moments["optimiser"] = gradients
    return moments
