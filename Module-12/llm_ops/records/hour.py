"""Tokens a GPU-hour: an engine that always has requests, prompts read and answers written, and what a step costs it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from llm_core.generate import Sampling
from llm_precision.benchmark import why
from llm_scale.planner import MODELS
from llm_serve.engine.config import EngineConfig
from llm_serve.engine.engine import Engine
from llm_serve.engine.request import Request
from llm_serve.records.decode import TOY, random_gpt

from course.record import Setting
from llm_ops.capacity.costs import StepCosts, Timed, fit
from llm_ops.cost import dollars_per_million

DOLLARS = 2.5  # an hour, to have a price beside the tokens; another price is in proportion


def tokens(setting: Setting) -> Iterator[dict[str, Any]]:
    """Random weights in bf16, all requests there from the beginning; the costs are fitted to the engine's own steps."""
    prompt, new, count, batch = setting.pick(full=(512, 128, 192, 64), toy=(8, 4, 6, 2))
    for name in ("1B", "8B"):
        config = setting.pick(full=MODELS[name], toy=TOY)
        row: dict[str, Any] = {"row": f"{name}, batch {batch}", "prompt": prompt, "new": new, "requests": count}
        try:
            model = random_gpt(config, setting.device, "bfloat16", setting.pick(full=torch.bfloat16, toy=torch.float32))
            blocks = batch * (-(-(prompt + 2 * new) // 16) + 1)
            budget = max(batch, setting.pick(full=2048, toy=16))
            engine = Engine(
                model, None,
                EngineConfig(num_blocks=blocks, max_num_seqs=batch, max_num_batched_tokens=budget,
                             enable_prefix_caching=False, max_waiting=count),
            )  # fmt: skip
            # Half to one and a half times the length: with one length all would read at once and write at once.
            work = [
                Request(
                    (number % 50 + 1,) * prompt,
                    Sampling(max_new_tokens=new // 2 + number * 7 % (new + 1), temperature=0),
                )
                for number in range(count)
            ]
            engine.run(work[:1])  # the first steps are slower
            begun, steps = time.perf_counter(), len(engine.log)
            answers = engine.run(work)
            seconds = time.perf_counter() - begun
            speed = sum(len(each[0].tokens) for each in answers) / seconds
            row |= {"seconds": seconds, "tokens_per_second": speed, "tokens_per_gpu_hour": 3600 * speed,
                    "dollars_per_million_at_2.5": dollars_per_million(speed, DOLLARS),
                    "costs": asdict(_costs(engine, steps))}  # fmt: skip
            del model, engine
        except (torch.OutOfMemoryError, RuntimeError) as error:
            row["missing"] = why(error)
        yield row
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def _costs(engine: Engine, since: int) -> StepCosts:
    """Costs of the engine's steps since one of its log."""
    times = []
    for step in list(engine.log)[since:]:
        writing = sum(tokens == 1 for _, _, tokens, _ in step.tokens)
        reading = sum(tokens for _, _, tokens, _ in step.tokens) - writing
        times.append(Timed(writing, reading, step.seconds))
    return fit(times)
