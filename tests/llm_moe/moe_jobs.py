"""What the ranks of `test_sparse_models` run."""

from __future__ import annotations

import torch
import torch.distributed as dist


def layer_of(experts: int, form: str = "grouped"):
    from llm_core.config import GPTConfig
    from llm_moe.config import SparseConfig
    from llm_moe.layer import SparseMLP

    torch.manual_seed(0)
    layer = SparseMLP(GPTConfig(10, hidden_size=32, intermediate_size=48), SparseConfig(experts, 2, form=form))
    for values in layer.parameters():
        torch.nn.init.normal_(values, std=0.3)
    return layer


def exchanged(form: str) -> tuple[list[float], int]:
    """Differences to one process: outputs, gradients of the input, the router and the experts; and bytes sent."""
    from llm_moe.parallel import ExpertParallelMLP

    layer = layer_of(8, form)
    x, grad = torch.randn(2, 4, 9, 32)
    rank, own = dist.get_rank(), 8 // dist.get_world_size()
    mine = slice(2 * rank, 2 * rank + 2)
    spread, rows = ExpertParallelMLP(layer), x[mine].clone().requires_grad_()
    out = spread(rows)
    (out * grad[mine]).sum().backward()
    router = spread.gate.weight.grad.clone()
    dist.all_reduce(router)
    layer.zero_grad()
    whole = x.clone().requires_grad_()
    wanted = layer(whole)
    (wanted * grad).sum().backward()
    held = slice(rank * own, (rank + 1) * own)
    pairs = [
        (out, wanted[mine]), (rows.grad, whole.grad[mine]), (router, layer.gate.weight.grad),
        (spread.experts.gate_up_proj.grad, layer.experts.gate_up_proj.grad[held]),
        (spread.experts.down_proj.grad, layer.experts.down_proj.grad[held]),
    ]  # fmt: skip
    return [float((a - b).abs().max()) for a, b in pairs], spread.wire_bytes


def refused() -> str:
    from llm_moe.parallel import ExpertParallelMLP

    try:
        ExpertParallelMLP(layer_of(7))
    except ValueError as error:
        return str(error)
    return ""
