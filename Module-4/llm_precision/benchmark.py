"""From a list of variants to a table: memory, seconds in turns, and a reason where a variant cannot run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llm_precision.meters import Seconds, held_and_peak, interleaved, utilisation


class Unsupported(Exception):
    """This machine or library cannot run a variant; the message says why."""


@dataclass(frozen=True)
class Variant:
    """One way of doing the same work.

    Attributes:
        name: its row's name.
        build: makes everything the work needs and gives the work; a call of it is one step and returns its loss.
        tokens: of a step, for tokens/s.
        flops: of a step, for the utilisation; 0 for unknown.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    tokens: int = 0
    flops: float = 0.0


@dataclass(frozen=True)
class Row:
    """What was measured of a variant, or, in `missing`, why it was not.

    Attributes:
        seconds: of a step: median and quartiles.
        held: bytes of tensors between two steps.
        peak: bytes of tensors at the highest point of a step.
        loss: that the last step returned.
    """

    name: str
    seconds: Seconds | None = None
    held: int | None = None
    peak: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    utilisation: float | None = None
    missing: str = ""

    def record(self) -> dict[str, Any]:
        """The row as JSON holds it, what is unknown left out."""
        values = {**asdict(self), "seconds": self.seconds and self.seconds._asdict()}
        return {name: value for name, value in values.items() if value not in (None, "")}


def benchmark(
    variants: Sequence[Variant], device: str = "cpu", rounds: int = 7, warmup: int = 2, peak_flops: float | None = None
) -> list[Row]:
    """Measure each variant's memory alone, then the seconds of all of them in turns.

    Args:
        variants: with different names.
        device: "cpu" or "cuda".
        rounds: turns that count.
        warmup: turns that do not.
        peak_flops: FLOP/s of the device, for the utilisation.

    Raises:
        ValueError: for two variants of one name.
    """
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        raise ValueError(f"variants need different names, not {names}")
    rows, works, memory = {}, {}, {}
    for variant in variants:
        try:
            work, held, peak = held_and_peak(variant.build, device)
            works[variant.name], memory[variant.name] = work, (held, peak)
        except (Unsupported, RuntimeError) as error:  # out of memory and not implemented are RuntimeErrors
            rows[variant.name] = Row(variant.name, missing=why(error))
            _free(device)
    times = interleaved(works, device, rounds, warmup)
    for variant in variants:
        if variant.name in works:
            seconds = Seconds.of(times[variant.name])
            held, peak = memory[variant.name]
            rows[variant.name] = Row(
                variant.name, seconds, held, peak, float(works[variant.name]()),
                variant.tokens / seconds.median if variant.tokens else None,
                utilisation(variant.flops, seconds.median, peak_flops) if variant.flops else None,
            )  # fmt: skip
    works.clear()
    _free(device)
    return [rows[name] for name in names]


def why(error: Exception) -> str:
    """One line on why a variant did not run."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = str(error).strip().split("\n")[0]
    return first if isinstance(error, Unsupported) else f"not supported: {type(error).__name__}: {first}"[:200]


def _free(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def speed(row: Row) -> float:
    """Tokens a second, or steps a second where no tokens are counted; a row without times has none."""
    assert row.seconds is not None
    return row.tokens_per_second or 1 / row.seconds.median


def table(rows: Sequence[Row], baseline: str | None = None) -> str:
    """The rows as lines: milliseconds with their spread, tokens/s, the factor over `baseline`, MiB, the loss."""
    first = next((row for row in rows if row.name == (baseline or rows[0].name)), rows[0])
    lines = [f"{'':<26}{'ms':>9}{'±%':>6}{'tokens/s':>11}{'faster':>8}{'held MiB':>10}{'peak MiB':>10}{'loss':>9}"]
    for row in rows:
        if row.seconds is None or row.held is None or row.peak is None or row.loss is None:
            lines.append(f"{row.name:<26}  {row.missing}")
            continue
        factor = f"{speed(row) / speed(first):.2f}" if first.seconds else ""
        lines.append(
            f"{row.name:<26}{1e3 * row.seconds.median:9.2f}{50 * row.seconds.spread:6.1f}"
            f"{row.tokens_per_second or 0:11,.0f}{factor:>8}"
            f"{row.held / 2**20:10.1f}{row.peak / 2**20:10.1f}{row.loss:9.4f}"
        )
    return "\n".join(lines)
