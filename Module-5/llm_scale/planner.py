"""What can these GPUs train? Every strategy's largest micro-batch and context, and what to change where none fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from llm_core.config import GPTConfig
from llm_core.costs.counts import CONFIGS

from llm_scale.budget import Budget, Setup, budget

# Published shapes: Llama 3's 8B (Grattafiori et al. 2024, arXiv:2407.21783), Llama 2's 13B and 70B (Touvron et al.
# 2023, arXiv:2307.09288), Llama 1's 33B (arXiv:2302.13971), Code Llama's 34B (Rozière et al. 2023, arXiv:2308.12950).
MODELS: dict[str, GPTConfig] = {
    **CONFIGS,
    "8B": GPTConfig(
        128_256, 4_096, 14_336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=8_192, tie_word_embeddings=False,
    ),
    "13B": GPTConfig(
        32_000, 5_120, 13_824, num_hidden_layers=40, num_attention_heads=40, max_position_embeddings=4_096,
        tie_word_embeddings=False,
    ),
    "33B": GPTConfig(
        32_000, 6_656, 17_920, num_hidden_layers=60, num_attention_heads=52, max_position_embeddings=4_096,
        tie_word_embeddings=False,
    ),
    "34B": GPTConfig(
        32_000, 8_192, 22_016, num_hidden_layers=48, num_attention_heads=64, num_key_value_heads=8,
        max_position_embeddings=16_384, tie_word_embeddings=False,
    ),
    "70B": GPTConfig(
        32_000, 8_192, 28_672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        max_position_embeddings=4_096, tie_word_embeddings=False,
    ),
}  # fmt: skip
WORKED = ("1B", "3B", "7B", "13B", "33B", "70B")  # the models of `worked_example`
LIMIT = 2**20  # of rows, and of positions, that a search goes to


@dataclass(frozen=True)
class Row:
    """One strategy.

    Attributes:
        setup: the strategy.
        budget: of one row of the asked context.
        batch: the largest micro-batch that fits, at that context; 0 when not even one row does.
        context: the longest row that fits alone; 0 when none does.
    """

    setup: Setup
    budget: Budget
    batch: int
    context: int

    @property
    def name(self) -> str:
        """In words, for a table."""
        setup = self.setup
        parts = [setup.strategy, setup.precision, *(["checkpointing"] if setup.checkpointing else [])]
        return ", ".join([*parts, *([f"loss in chunks of {setup.loss_chunk:,}"] if setup.loss_chunk else []),
                          *(["offload"] if setup.offload else [])])  # fmt: skip


def setups(gpus: int, method: str = "full") -> list[Setup]:
    """The strategies worth asking for, from the one that sends and computes least on."""
    strategies = ["single"] if gpus == 1 else ["ddp", "zero1", "zero2", "fsdp"]
    precision = "bf16-mixed" if method == "full" else "bf16-true"
    found = []
    for strategy in strategies:
        found.append(Setup(strategy, gpus, precision, method))
    last = found[-1] if method != "full" or gpus == 1 else replace(found[-1], precision="bf16-master")
    found += [last] if last not in found else []
    found += [replace(last, checkpointing=True), replace(last, checkpointing=True, loss_chunk=2048)]
    if gpus > 1:
        found.append(replace(last, checkpointing=True, loss_chunk=2048, offload=True))
    return found


def plan(
    model: str | GPTConfig, gpus: int, memory: float, time: int = 0, method: str = "full", reserve: float = 0.08,
    asked: Iterable[Setup] = (),
) -> list[Row]:  # fmt: skip
    """A row for each strategy.

    Args:
        model: a name of `MODELS`, or sizes.
        gpus: how many.
        memory: of each, in GB (10^9 bytes).
        time: context; the model's own by default.
        method: "full", "lora" or "qlora".
        reserve: share of the memory that the driver, NCCL and the allocator's gaps take.
        asked: setups in place of the usual ones.

    Raises:
        ValueError: for an unknown name or a machine that cannot be.
    """
    if isinstance(model, str) and model not in MODELS:
        raise ValueError(f"no model {model!r}; take one of {', '.join(MODELS)}, or give a GPTConfig")
    if gpus < 1 or memory <= 0 or not 0 <= reserve < 1:
        raise ValueError(
            f"gpus={gpus}, memory={memory}, reserve={reserve}: at least one GPU of some GB, reserve in [0, 1)"
        )
    config = MODELS[model] if isinstance(model, str) else model
    time = time or config.max_position_embeddings
    if time > config.max_position_embeddings:
        raise ValueError(f"time={time}: the model has {config.max_position_embeddings} positions; ask for fewer")
    free = int(memory * 1e9 * (1 - reserve))
    rows = []
    for setup in list(asked) or setups(gpus, method):

        def fits(batch: int, length: int, setup: Setup = setup) -> bool:
            return budget(config, setup, batch, length).bytes <= free

        rows.append(Row(
            setup, budget(config, setup, 1, time), largest(lambda batch: fits(batch, time)),
            largest(lambda length: fits(1, length)),
        ))  # fmt: skip
    return rows


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number up to `LIMIT` that fits, where every smaller one does too; 0 for none."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= LIMIT and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def advice(model: str | GPTConfig, gpus: int, memory: float, time: int = 0, method: str = "full") -> str:
    """What fits, in a sentence; where nothing does, the smallest change that makes something fit."""
    rows = [row for row in plan(model, gpus, memory, time, method) if row.batch]
    if rows:
        return f"{rows[0].name}: rows a GPU at the most: {rows[0].batch}"
    for other in METHODS_BY_WEIGHT[METHODS_BY_WEIGHT.index(method) + 1 :]:
        if any(row.batch for row in plan(model, gpus, memory, time, other)):
            return f"nothing fits in full; {other} does" if method == "full" else f"{method} does not fit; {other} does"
    number = gpus
    while number < 2**14:
        number *= 2
        if any(row.batch for row in plan(model, number, memory, time, method)):
            return f"nothing fits on {gpus} of {memory:g} GB; {number} of them hold it"
    return "nothing fits on any number of them: a whole block does not fit on one; take a smaller model"


METHODS_BY_WEIGHT = ("full", "lora", "qlora")


def table(rows: Iterable[Row], memory: float) -> str:
    """The rows as text: GB at the peak of one row, what is highest, rows and positions that fit."""
    lines = [f"{'strategy':<62}{'GB':>8}{'of':>6}{'rows':>8}{'context':>10}  highest at"]
    for row in rows:
        batch, context = (f"{row.batch:,}", f"{row.context:,}") if row.batch or row.context else ("no", "no")
        lines.append(
            f"{row.name:<62}{row.budget.bytes / 1e9:8.1f}{memory:6g}{batch:>8}{context:>10}  {row.budget.moment}"
        )
    return "\n".join(lines)


def worked_example(gpus: int = 2, memory: float = 80.0, time: int = 2048) -> list[tuple[str, str, Row | None]]:
    """For each model of `WORKED` and each method, the first setup that fits; None where none does."""
    found = []
    for name in WORKED:
        for method in METHODS_BY_WEIGHT:
            rows = [row for row in plan(name, gpus, memory, time, method) if row.batch]
            found.append((name, method, rows[0] if rows else None))
    return found
