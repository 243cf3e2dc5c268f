"""GPT-2's size, 124M, in bf16 and compiled: our step beside nanoGPT's own, in turns, in one process."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from llm_core.config import GPTConfig
from llm_core.costs.counts import flops_per_token, num_parameters
from llm_core.costs.speed import peak_flops
from torch import Tensor, nn

from course.record import Setting
from llm_precision.benchmark import why
from llm_precision.levers import Levers, build_step
from llm_precision.meters import interleaved, utilisation
from llm_precision.records.ladder import shape

ROWS = 32
OURS = {
    "ours, cuDNN attention": Levers("bf16-mixed", "cudnn", "fused", compiled=True),
    "ours": Levers("bf16-mixed", optimizer="fused", compiled=True),
}


def nanogpt_step(
    checkout: str, config: GPTConfig, batches: list[Tensor], device: str, compiled: bool, mixed: bool = True
) -> tuple[Callable[[], Tensor], int]:
    """nanoGPT's model and optimiser, from its checkout, in the loop of its train.py; and its number of parameters.

    With `mixed` the forward pass is autocast to bfloat16.

    Raises:
        ValueError: where the checkout holds no model.py.
    """
    file = Path(checkout) / "model.py"
    if not file.is_file():
        raise ValueError(f"{checkout} is no checkout of nanoGPT: it has no model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(module.GPTConfig(
            block_size=config.max_position_embeddings, vocab_size=config.vocab_size, n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads, n_embd=config.hidden_size, dropout=0.0, bias=False,
        )).to(device)  # fmt: skip
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
    pairs = [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for ids in batches]
    runs: Any = torch.compile(model) if compiled else model
    torch.backends.cuda.matmul.allow_tf32 = True  # as train.py does
    torch.backends.cudnn.allow_tf32 = True
    position = 0

    def step() -> Tensor:
        nonlocal position
        inputs, targets = pairs[position % len(pairs)]
        position += 1
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            _, loss = runs(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step, sum(parameter.numel() for parameter in model.parameters())


@functools.cache
def _contenders(device: str, toy: bool, checkout: str) -> dict[str, tuple[Callable[[], Tensor], int]]:
    """Steps and numbers of parameters; compiled once for all sections of a process."""
    setting = Setting(device, toy)
    config, batches = shape(setting, ROWS)
    longer = [torch.cat([ids, ids[:, :1]], dim=1) for ids in batches]  # it takes inputs and targets of one length
    steps = {}
    if checkout:
        steps["nanoGPT"] = nanogpt_step(checkout, config, longer, device, compiled=not toy)
    chosen = {"ours": Levers("bf16-mixed", optimizer="fused")} if toy else OURS
    for name, levers in chosen.items():
        steps[name] = build_step(config, levers, batches, device, 6e-4), num_parameters(config)
    return steps


def compile_all(setting: Setting) -> Iterator[dict[str, Any]]:
    """Seconds of the first step of each contender, which compiles it."""
    for name, (step, _) in _contenders(setting.device, setting.toy, setting.options.get("nanogpt", "")).items():
        start = time.perf_counter()
        try:
            loss = step().item()
            yield {"row": name, "seconds_of_the_first_step": time.perf_counter() - start, "loss": loss}
        except Exception as error:
            yield {"row": name, "missing": why(error)}


def race(setting: Setting) -> Iterator[dict[str, Any]]:
    """Tokens/s and MFU (6N + attention, over the dense bf16 peak) of the contenders in turns of ten steps."""
    contenders = _contenders(setting.device, setting.toy, setting.options.get("nanogpt", ""))
    steps = {name: step for name, (step, _) in contenders.items()}
    for name in list(steps):
        try:
            steps[name]().item()
        except Exception as error:
            yield {"row": name, "missing": why(error)}
            del steps[name]
    config, batches = shape(setting, ROWS)
    rows = len(batches[0])
    tokens, repeats = rows * config.max_position_embeddings, setting.pick(full=10, toy=1)
    times = interleaved(steps, setting.device, setting.pick(full=7, toy=1), 1, repeats)
    peak = peak_flops(torch.cuda.get_device_name()) if setting.device == "cuda" else None
    flops = flops_per_token(config, config.max_position_embeddings) * tokens
    theirs = times.get("nanoGPT")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        row = {
            "row": name, "parameters": contenders[name][1], "rows": rows, "context": config.max_position_embeddings,
            "seconds": median, "all_seconds": seconds, "tokens_per_second": tokens / median,
            "mfu": utilisation(flops, median, peak), "peak_flops": peak,
        }  # fmt: skip
        if theirs and name != "nanoGPT":
            row["of_nanogpt"] = statistics.median(n / s for n, s in zip(theirs, seconds, strict=True))
        yield row
