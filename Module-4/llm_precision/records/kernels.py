"""Lesson 4's attention kernels: seconds, bytes and errors, over the length of the text at equally many tokens."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from course.record import Setting
from llm_precision.attention.tiled import naive_attention, tiled_attention
from llm_precision.benchmark import why
from llm_precision.meters import held_and_peak, interleaved

HEADS, WIDTH = 12, 64
Inputs = tuple[Tensor, Tensor, Tensor]
BLOCKS = ((64, 64, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (64, 128, 4, 2))


def _library(backend: SDPBackend) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend


def _ways(setting: Setting, time: int, best: tuple[Any, Any]) -> dict[str, Callable[..., Tensor]]:
    from llm_precision.attention.kernel import flash_attention

    ways: dict[str, Callable[..., Tensor]] = {
        "naive": naive_attention,
        "Triton": lambda q, k, v: flash_attention(q, k, v, True, *best),
        "SDPA, flash": _library(SDPBackend.FLASH_ATTENTION),
    }
    if setting.device == "cuda":
        ways["SDPA, cuDNN"] = _library(SDPBackend.CUDNN_ATTENTION)
    if time <= 4096:
        ways["tiled, PyTorch"] = lambda q, k, v: tiled_attention(q, k, v, True, 256)
    return ways


def _inputs(setting: Setting, batch: int, heads: int, time: int, dtype: torch.dtype) -> Inputs:
    torch.manual_seed(0)
    shape = (batch, heads, time, WIDTH)
    q, k, v = (torch.randn(shape, device=setting.device).to(dtype).requires_grad_() for _ in range(3))
    return q, k, v


def _error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def errors(setting: Setting) -> Iterator[dict[str, Any]]:
    """Relative errors of outputs and gradients against float64, at lengths that are no multiple of a tile."""
    kinds = setting.pick(full=(torch.float32, torch.float16, torch.bfloat16), toy=(torch.float32,))
    for dtype in kinds:
        for time in setting.pick(full=(1, 37, 512, 1000), toy=(37,)):
            inputs = _inputs(setting, 1, 2, time, dtype)
            upstream = torch.randn_like(inputs[0])
            q, k, v = wide = tuple(x.detach().double().requires_grad_() for x in inputs)
            wanted = naive_attention(q, k, v)
            gradients = torch.autograd.grad(wanted, wide, upstream.double())
            for name, way in _ways(setting, time, (_blocks(64, 64, 4, 2), _blocks(32, 32, 4, 2))).items():
                row = {"row": f"{name}, {str(dtype)[6:]}, {time}", "time": time}
                try:
                    out = way(*inputs)
                    found = torch.autograd.grad(out, inputs, upstream)
                except Exception as error:
                    yield {**row, "missing": why(error)}
                    continue
                told = dict(zip(("out", "q", "k", "v"), (out, *found), strict=True))
                pairs = zip(told.items(), (wanted, *gradients), strict=True)
                yield {**row, "relative_error": {part: _error(ours, theirs) for (part, ours), theirs in pairs}}


def _blocks(*sizes: int) -> Any:
    from llm_precision.attention.kernel import Blocks

    return Blocks(*sizes)


def tiles(setting: Setting) -> Iterator[dict[str, Any]]:
    """Seconds of the Triton kernel by the sizes of its tiles, at 2,048 positions, forward and backward pass apart."""
    from llm_precision.attention.kernel import flash_attention

    time, batch = setting.pick(full=2048, toy=32), setting.pick(full=8, toy=1)
    inputs = _inputs(setting, batch, HEADS, time, setting.pick(full=torch.bfloat16, toy=torch.float32))
    q, k, v = inputs
    upstream = torch.randn_like(q)
    rounds, repeats = setting.pick(full=(5, 10), toy=(1, 1))
    for sizes in setting.pick(full=BLOCKS, toy=BLOCKS[:1]):
        row: dict[str, Any] = {"row": "{} x {}, {} warps, {} stages".format(*sizes), "blocks": list(sizes)}
        forward = partial(flash_attention, q, k, v, True, _blocks(*sizes))
        try:
            backward = partial(torch.autograd.grad, forward(), inputs, upstream, retain_graph=True)
            works: dict[str, Callable[[], Any]] = {"forward": forward, "backward": backward}
            times = interleaved(works, setting.device, rounds, 1, repeats)
            row.update({f"{name}_seconds": statistics.median(seconds) for name, seconds in times.items()})
        except Exception as error:
            row["missing"] = why(error)
        yield row


def _itself(work: Callable[[], Any]) -> Callable[[], Any]:
    return work


def _without_graph(way: Callable[..., Tensor], inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return way(*inputs)


def _with_gradients(way: Callable[..., Tensor], inputs: Inputs, upstream: Tensor) -> Any:
    return torch.autograd.grad(way(*inputs), inputs, upstream)


def speeds(setting: Setting) -> Iterator[dict[str, Any]]:
    """Seconds of forward, and of forward and backward, and the peak of bytes, for 16,384 tokens in rows of each length.

    FLOPs count what a causal kernel must do: half of the T x T products; for the backward pass 2.5 times as many.
    """
    best = (_blocks(128, 64, 4, 3), _blocks(64, 64, 4, 3))
    dtype = setting.pick(full=torch.bfloat16, toy=torch.float32)
    for time in setting.pick(full=(512, 1024, 2048, 4096, 8192, 16384), toy=(32,)):
        batch = setting.pick(full=16384, toy=64) // time
        inputs = _inputs(setting, batch, HEADS, time, dtype)
        upstream = torch.randn_like(inputs[0])
        forward_flops = 2 * batch * HEADS * time**2 * WIDTH
        works: dict[str, Callable[[], Any]] = {}
        peaks: dict[str, int] = {}
        for name, way in _ways(setting, time, best).items():
            forward, both = partial(_without_graph, way, inputs), partial(_with_gradients, way, inputs, upstream)
            try:
                _, held, peak = held_and_peak(partial(_itself, both), setting.device)
            except Exception as error:
                yield {"row": f"{name}, {time}", "way": name, "time": time, "missing": why(error)}
                if setting.device == "cuda":
                    torch.cuda.empty_cache()
                continue
            peaks[name] = peak - held
            works |= {f"{name}: forward": forward, f"{name}: both": both}
        rounds, repeats = setting.pick(full=(5, 3), toy=(1, 1))
        times = interleaved(works, setting.device, rounds, 1, repeats)
        for name, peak in peaks.items():
            one, two = statistics.median(times[f"{name}: forward"]), statistics.median(times[f"{name}: both"])
            yield {
                "row": f"{name}, {time}", "way": name, "time": time, "batch": batch, "heads": HEADS, "head_dim": WIDTH,
                "forward_seconds": one, "both_seconds": two, "peak_bytes": peak,
                "forward_flops_per_second": forward_flops / one, "both_flops_per_second": 3.5 * forward_flops / two,
                "scores_bytes": batch * HEADS * time**2 * inputs[0].element_size(),
            }  # fmt: skip
