"""Module 4's helper package: attention kernels, meters, a benchmark, the levers of a training step, its peak memory.

`from llm_precision import tiled_attention, benchmark, predict_peak`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_precision.attention.kernel import Blocks, flash_attention
    from llm_precision.attention.tiled import naive_attention, tiled_attention
    from llm_precision.benchmark import Row, Variant, benchmark, table
    from llm_precision.budget import predict_peak
    from llm_precision.levers import Levers, build_step
    from llm_precision.meters import held_and_peak, interleaved
    from llm_precision.roofline import Ceilings, measure_ceilings

__all__ = [
    "Blocks", "Ceilings", "Levers", "Row", "Variant", "benchmark", "build_step", "flash_attention", "held_and_peak",
    "interleaved", "measure_ceilings", "naive_attention", "predict_peak", "table", "tiled_attention",
]  # fmt: skip

export(__name__, {
    "Blocks": "attention.kernel", "Ceilings": "roofline", "Levers": "levers", "Row": "benchmark",
    "Variant": "benchmark", "benchmark": "benchmark", "build_step": "levers", "flash_attention": "attention.kernel",
    "held_and_peak": "meters", "interleaved": "meters", "measure_ceilings": "roofline",
    "naive_attention": "attention.tiled", "predict_peak": "budget", "table": "benchmark",
    "tiled_attention": "attention.tiled",
})  # fmt: skip
