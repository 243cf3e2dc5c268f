"""Experts against a dense MLP of the same work per token on one GPU: forward and backward, three forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from llm_core.config import GPTConfig
from llm_core.model import SwiGLU
from llm_precision.benchmark import why
from llm_precision.meters import seconds_of
from torch import Tensor, nn

from course.record import Setting
from llm_moe.config import FORMS, SparseConfig
from llm_moe.layer import SparseMLP

EXPERTS, CHOSEN = 8, 2


def equal_work(setting: Setting) -> Iterator[dict[str, Any]]:
    """8 experts of which a token meets 2, each half as wide as the dense MLP beside them, in bf16."""
    hidden, inside, tokens = setting.pick(full=(4096, 14336, 8192), toy=(32, 64, 16))
    dtype = torch.bfloat16 if setting.device == "cuda" else torch.float32
    config = GPTConfig(8, hidden_size=hidden, intermediate_size=inside, num_attention_heads=4)
    x = torch.randn(1, tokens, hidden, device=setting.device, dtype=dtype)
    makers: dict[str, Callable[[], nn.Module]] = {"dense": lambda: SwiGLU(config)}
    for form in FORMS:
        sparse = SparseConfig(EXPERTS, CHOSEN, moe_intermediate_size=inside // CHOSEN, form=form)
        makers[form] = lambda sparse=sparse: SparseMLP(config, sparse)  # type: ignore[misc]
    flops = 3 * 2 * 3 * hidden * inside * tokens  # forward and backward, three matrices; the router is not counted
    for name, make in makers.items():
        row: dict[str, Any] = {"row": name, "tokens": tokens, "hidden": hidden, "width_in_all": inside, "flops": flops}
        try:
            module = make().to(setting.device, dtype)
            _step(module, x)
            seconds = sorted(seconds_of(lambda: _step(module, x), setting.device) for _ in range(5))[2]  # noqa: B023
            row |= {"seconds": seconds, "teraflops_per_second": flops / seconds / 1e12,
                    "parameters": sum(each.numel() for each in module.parameters())}  # fmt: skip
            if setting.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                _step(module, x)
                row["peak_bytes"] = torch.cuda.max_memory_allocated()
            del module
        except (torch.OutOfMemoryError, RuntimeError) as error:
            row["missing"] = why(error)
        yield row


def _step(module: nn.Module, x: Tensor) -> None:
    out: Tensor = module(x)
    out.float().pow(2).mean().backward()
    module.zero_grad()
