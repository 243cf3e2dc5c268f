"""Writing with random weights on one GPU, against its bandwidth: a token for each of 1, 8 and 64 requests; and reading.

Each request holds 512 positions. A step is timed twice: as Python gives its operations to the GPU, and replayed as one
CUDA graph, which is how serving engines run it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_precision.benchmark import why
from llm_precision.meters import count_flops, seconds_of
from llm_precision.roofline import copy_bandwidth
from llm_scale.planner import MODELS
from torch import Tensor, nn

from course import scale
from course.record import Setting
from llm_serve.cache.paged import PagedCache
from llm_serve.cache.sizes import kv_bytes_per_token
from llm_serve.engine.forward import Piece, batch_of, run
from llm_serve.quantization.fp8 import Fp8Scheme, to_fp8, weight_to_fp8

HELD, PROMPT, BLOCK = 512, 2048, 16
TOY = GPTConfig(128, 64, 128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                max_position_embeddings=4_096, tie_word_embeddings=False)  # fmt: skip


class Fp8Product(nn.Module):
    """A linear layer whose product a GPU makes of eight-bit numbers: a scale for each output and for each token."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        stored = weight_to_fp8(layer.weight.detach().float(), Fp8Scheme("channel"))
        self.register_buffer("numbers", stored.numbers)
        self.register_buffer("scale", stored.scale.float())
        self.numbers: Tensor
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        seen = to_fp8(flat, flat.abs().amax(dim=-1, keepdim=True).clamp(min=1e-6) / 448)
        if x.device.type != "cuda":  # a CPU has no such product: the same numbers, written out
            out = seen.dequantize().to(x.dtype) @ (self.numbers.to(x.dtype) * self.scale.to(x.dtype)).T
        else:
            out = torch._scaled_mm(
                seen.numbers, self.numbers.t(), seen.scale.float(), self.scale.t(), out_dtype=x.dtype
            )
        return out.unflatten(0, x.shape[:-1])


def bf16(setting: Setting) -> Iterator[dict[str, Any]]:
    """Weights of 16 bits."""
    for name in ("1B", "8B", "13B", "34B"):
        yield from measured(setting, name, "bfloat16")


def fp8(setting: Setting) -> Iterator[dict[str, Any]]:
    """Weights and activations of eight bits in the blocks' products."""
    for name in ("1B", "8B", "13B", "34B"):
        yield from measured(setting, name, "fp8")


def measured(setting: Setting, name: str, weights: str) -> Iterator[dict[str, Any]]:
    """Rows of one model, or why there are none."""
    config, label = setting.pick(full=MODELS[name], toy=TOY), f"{name} {weights}"
    try:
        model = random_gpt(config, setting.device, weights, setting.pick(full=torch.bfloat16, toy=torch.float32))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        yield {"row": label, "missing": why(error)}
        return
    bandwidth = copy_bandwidth(setting.device, setting.pick(full=2**30, toy=2**22))
    held = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    embedding = 0 if config.tie_word_embeddings else model.model.embed_tokens.weight.nbytes  # of it rows are looked up
    bytes_a_number = model.model.embed_tokens.weight.element_size()
    for batch in setting.pick(full=(1, 8, 64), toy=(1, 2)):
        row: dict[str, Any] = {"row": f"{label}, batch {batch}", "batch": batch, "held_positions": HELD,
                               "weight_bytes": held, "copy_bandwidth": bandwidth}  # fmt: skip
        read = held - embedding + batch * HELD * kv_bytes_per_token(config, bytes_a_number)
        row |= {"read_bytes": read, "predicted_seconds": read / bandwidth}
        try:
            step = decode_step(model, batch, setting.device)
            row |= rate("eager", step, batch, read / bandwidth, setting.device)
            if setting.device == "cuda":
                row |= rate("graph", replayed(step), batch, read / bandwidth, setting.device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            row["missing"] = why(error)
        yield row
    yield prefill(model, label, setting)
    del model
    if setting.device == "cuda":
        torch.cuda.empty_cache()


def rate(kind: str, step: Callable[[], Any], batch: int, predicted: float, device: str) -> dict[str, float]:
    """Seconds of a step, tokens a second, and the predicted seconds over them."""
    step()
    seconds = sorted(seconds_of(step, device, repeats=5) for _ in range(5))[2]
    return {f"{kind}_seconds": seconds, f"{kind}_tokens_per_second": batch / seconds,
            f"{kind}_share_of_bandwidth": predicted / seconds}  # fmt: skip


def random_gpt(config: GPTConfig, device: str, weights: str, dtype: torch.dtype) -> GPT:
    """A model with random weights, in the dtype from the beginning: 34 billion are never there in 32 bits."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model = GPT(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    if weights == "fp8":
        for path, layer in list(model.model.layers.named_modules()):
            if isinstance(layer, nn.Linear):
                model.model.layers.set_submodule(path, Fp8Product(layer))
    return model


def decode_step(model: GPT, batch: int, device: str) -> Callable[[], Tensor]:
    """A step that writes a token for each of some requests."""
    blocks = -(-HELD // BLOCK)
    weight = model.model.embed_tokens.weight
    cache = PagedCache(model.config, batch * blocks, BLOCK, weight.dtype, device)
    tables = torch.randperm(batch * blocks, generator=torch.Generator().manual_seed(0)).view(batch, blocks).tolist()
    batched = batch_of([Piece([1], HELD - 1, table) for table in tables], BLOCK, weight.dtype, device)
    return lambda: run(model, cache, batched)


def replayed(step: Callable[[], Any]) -> Callable[[], None]:
    """The step as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


def prefill(model: GPT, label: str, setting: Setting) -> dict[str, Any]:
    """Reading a prompt: TFLOP/s of its products and attention."""
    length = setting.pick(full=PROMPT, toy=64)
    row: dict[str, Any] = {"row": f"{label}, prompt of {length}", "prompt": length}
    try:
        weight = model.model.embed_tokens.weight
        cache = PagedCache(model.config, length // BLOCK, BLOCK, weight.dtype, setting.device)
        piece = Piece([1] * length, 0, range(length // BLOCK))
        batched = batch_of([piece], BLOCK, weight.dtype, setting.device)
        with torch.device("meta"):
            shape = GPT(model.config)
        ids = torch.zeros(1, length, dtype=torch.long, device="meta")
        flops = count_flops(lambda: shape.model(ids, torch.arange(length, device="meta")[None], None, None))
        run(model, cache, batched)
        seconds = sorted(seconds_of(lambda: run(model, cache, batched), setting.device) for _ in range(5))[2]
        row |= {"seconds": seconds, "flops": flops, "teraflops_per_second": flops / seconds / 1e12,
                "tokens_per_second": length / seconds, "hardware": scale.hardware}  # fmt: skip
    except (torch.OutOfMemoryError, RuntimeError) as error:
        row["missing"] = why(error)
    return row
