"""Predicted against measured peak memory of a training step, from 100M to 7B parameters, all in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from llm_core.costs.counts import CONFIGS, num_parameters

from course.record import Setting
from llm_precision.benchmark import Unsupported, why
from llm_precision.budget import predict_peak
from llm_precision.levers import Levers, build_step
from llm_precision.meters import held_and_peak

ROWS = {"100M": 16, "350M": 8, "1B": 4, "3B": 2, "7B": 2}


def measure(setting: Setting) -> Iterator[dict[str, Any]]:
    """A row a model: the bytes held between steps and the peak, each beside its prediction."""
    levers = Levers(setting.pick(full="bf16-true", toy="fp32"), optimizer="fused")
    for name, rows in setting.pick(full=ROWS, toy={"1M": 2}).items():
        config = CONFIGS[name]
        time = setting.pick(full=config.max_position_embeddings, toy=32)
        batches = [torch.randint(config.vocab_size, (rows, time), device=setting.device)]
        predicted = predict_peak(config, rows, time, levers)
        row = {
            "row": name, "parameters": num_parameters(config), "rows": rows, "time": time,
            "precision": levers.precision, "predicted_held": predicted.held, "predicted_peak": predicted.bytes,
        }  # fmt: skip
        try:
            _, held, peak = held_and_peak(partial(build_step, config, levers, batches, setting.device), setting.device)
            yield {**row, "held": held, "peak": peak}
        except (Unsupported, torch.OutOfMemoryError) as error:
            yield {**row, "missing": why(error)}
        if setting.device == "cuda":
            torch.cuda.empty_cache()
